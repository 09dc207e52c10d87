// Package netpol enforces NetworkPolicy on one node of the test cluster: it
// watches pods, namespaces and policies and keeps one nft table. It is for test
// clusters only: no engine made for production can be had where this one runs.
//
// It may touch its own nft table and its own socket, and reads from the cluster.
package netpol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	netlisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// settle is how long changes are gathered before the rules are written anew.
const settle = 20 * time.Millisecond

type options struct{ kubeconfig, node, socket string }

// enforcer turns the watched state into rules.
type enforcer struct {
	node       string
	pods       corelisters.PodLister
	namespaces corelisters.NamespaceLister
	policies   netlisters.NetworkPolicyLister
	changed    chan struct{}

	mu sync.Mutex
	// announced holds the addresses that the CNI gate told of before the kubelet
	// reported them, by "namespace/name".
	announced map[string]netip.Addr
	last      string
}

// NewCommand makes the `netpol` program.
func NewCommand() *cobra.Command {
	var flags options
	command := &cobra.Command{
		Use:          "netpol",
		Short:        "Enforce NetworkPolicy on this node of a test cluster",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return run(ctx, flags)
		},
	}
	command.Flags().StringVar(&flags.kubeconfig, "kubeconfig", "", "kubeconfig file; empty inside a pod")
	command.Flags().StringVar(&flags.node, "node", os.Getenv("NODE_NAME"), "name of this node")
	command.Flags().StringVar(&flags.socket, "socket", "/run/agentapi/netpol.sock", "socket that the CNI gate asks")
	return command
}

func run(ctx context.Context, flags options) error {
	if flags.node == "" {
		return errors.New("which node is this? give --node or set NODE_NAME")
	}
	config, err := clientcmd.BuildConfigFromFlags("", flags.kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	guard := &enforcer{
		node:       flags.node,
		pods:       factory.Core().V1().Pods().Lister(),
		namespaces: factory.Core().V1().Namespaces().Lister(),
		policies:   factory.Networking().V1().NetworkPolicies().Lister(),
		changed:    make(chan struct{}, 1),
		announced:  map[string]netip.Addr{},
	}
	for _, informer := range []cache.SharedIndexInformer{
		factory.Core().V1().Pods().Informer(),
		factory.Core().V1().Namespaces().Informer(),
		factory.Networking().V1().NetworkPolicies().Informer(),
	} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { guard.wake() },
			UpdateFunc: func(any, any) { guard.wake() },
			DeleteFunc: func(any) { guard.wake() },
		}); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := guard.apply(); err != nil {
		return err
	}
	slog.Info("network policies are enforced", "node", flags.node)
	failed := make(chan error, 1)
	go func() { failed <- guard.serve(ctx, flags.socket) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-guard.changed:
			time.Sleep(settle)
			if err := guard.apply(); err != nil {
				slog.Error("rules not written, the last ones stay", "error", err)
			}
		}
	}
}

func (guard *enforcer) wake() {
	select {
	case guard.changed <- struct{}{}:
	default:
	}
}

// apply writes the rules if they differ from the last ones.
func (guard *enforcer) apply() error {
	guard.mu.Lock()
	defer guard.mu.Unlock()
	state, err := guard.snapshot()
	if err != nil {
		return err
	}
	script, err := render(state)
	if err != nil {
		return err
	}
	if script == guard.last {
		return nil
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(script)
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	guard.last = script
	return nil
}

func (guard *enforcer) snapshot() (snapshot, error) {
	state := snapshot{namespaces: map[string]labels.Set{}}
	namespaces, err := guard.namespaces.List(labels.Everything())
	if err != nil {
		return state, err
	}
	for _, namespace := range namespaces {
		state.namespaces[namespace.Name] = namespace.Labels
	}
	if state.policies, err = guard.policies.List(labels.Everything()); err != nil {
		return state, err
	}
	pods, err := guard.pods.List(labels.Everything())
	if err != nil {
		return state, err
	}
	seen := map[string]bool{}
	for _, object := range pods {
		key := object.Namespace + "/" + object.Name
		seen[key] = true
		if over(object) || object.Spec.HostNetwork {
			delete(guard.announced, key)
			continue
		}
		address, err := netip.ParseAddr(object.Status.PodIP)
		if err != nil {
			var early bool
			if address, early = guard.announced[key]; !early {
				continue
			}
		} else {
			delete(guard.announced, key)
		}
		state.pods = append(state.pods, pod{
			namespace: object.Namespace, name: object.Name, address: address, labels: object.Labels,
			ports: containerPorts(object), local: object.Spec.NodeName == guard.node,
		})
	}
	for key := range guard.announced {
		if !seen[key] {
			delete(guard.announced, key)
		}
	}
	state.sort()
	return state, nil
}

// over tells that a pod's address may already belong to another.
func over(object *corev1.Pod) bool {
	return object.Status.Phase == corev1.PodSucceeded || object.Status.Phase == corev1.PodFailed
}

func containerPorts(object *corev1.Pod) (ports []corev1.ContainerPort) {
	for _, container := range object.Spec.Containers {
		ports = append(ports, container.Ports...)
	}
	return ports
}
