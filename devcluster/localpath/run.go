// Package localpath gives claims of the storage class `standard` a folder on
// this node, as a volume of the kind `local`: unlike hostPath, it honours fsGroup.
//
// It may touch folders below its base folder, and the volumes it made.
package localpath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	class       = "standard"
	provisioner = "agentapi.dev/local-path"
	// selectedNode is written by the scheduler when a pod first wants the claim.
	selectedNode = "volume.kubernetes.io/selected-node"
	madeBy       = "pv.kubernetes.io/provisioned-by"
	// pause between two looks; both kinds of object come from a local cache.
	pause = 500 * time.Millisecond
)

type options struct{ kubeconfig, node, base string }

// NewCommand makes the `local-path` program.
func NewCommand() *cobra.Command {
	var flags options
	command := &cobra.Command{
		Use:          "local-path",
		Short:        "Provide volumes from a folder of this node of a test cluster",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return run(ctx, flags)
		},
	}
	command.Flags().StringVar(&flags.kubeconfig, "kubeconfig", "", "kubeconfig file; empty inside a pod")
	command.Flags().StringVar(&flags.node, "node", os.Getenv("NODE_NAME"), "name of this node")
	command.Flags().StringVar(&flags.base, "base", "/var/local-path", "folder that holds the volumes")
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
	claims := factory.Core().V1().PersistentVolumeClaims().Lister()
	volumes := factory.Core().V1().PersistentVolumes().Lister()
	factory.Core().V1().PersistentVolumeClaims().Informer()
	factory.Core().V1().PersistentVolumes().Informer()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for ctx.Err() == nil {
		wanted, err := claims.List(labels.Everything())
		if err != nil {
			return err
		}
		for _, claim := range wanted {
			if wants(claim, flags.node) {
				report("make", claim.Namespace+"/"+claim.Name, provide(ctx, client, claim, flags))
			}
		}
		held, err := volumes.List(labels.Everything())
		if err != nil {
			return err
		}
		for _, volume := range held {
			if volume.Annotations[madeBy] == provisioner && volume.Status.Phase == corev1.VolumeReleased &&
				volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
				report("remove", volume.Name, remove(ctx, client, volume, flags.base))
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

func report(verb, name string, err error) {
	if err != nil {
		slog.Error("volume", "verb", verb, "name", name, "error", err)
	}
}

// wants tells whether the claim waits for a volume on this node.
func wants(claim *corev1.PersistentVolumeClaim, node string) bool {
	return claim.Spec.StorageClassName != nil && *claim.Spec.StorageClassName == class &&
		claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil && claim.Annotations[selectedNode] == node
}

func provide(ctx context.Context, client kubernetes.Interface, claim *corev1.PersistentVolumeClaim, flags options) error {
	name := "pvc-" + string(claim.UID)
	dir := filepath.Join(flags.base, name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	// Past the umask: a container may run as any user.
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{madeBy: provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      claim.Spec.Resources.Requests,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			StorageClassName:              class,
			VolumeMode:                    claim.Spec.VolumeMode,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}},
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{flags.node},
				}}}},
			}},
		},
	}
	_, err := client.CoreV1().PersistentVolumes().Create(ctx, volume, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func remove(ctx context.Context, client kubernetes.Interface, volume *corev1.PersistentVolume, base string) error {
	dir := filepath.Clean(volume.Spec.Local.Path)
	if !strings.HasPrefix(dir, filepath.Clean(base)+string(filepath.Separator)) {
		return fmt.Errorf("%s is not below %s: left alone", dir, base)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	err := client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
