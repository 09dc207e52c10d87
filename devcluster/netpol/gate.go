package netpol

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	netv1 "k8s.io/api/networking/v1"
)

// patience is how long the gate waits for the watch to deliver a pod that the
// kubelet has already heard of.
const patience = 5 * time.Second

// serve answers the CNI gate. A pod's network set-up waits here until its rules
// stand, so there is no moment in which a new pod is open.
func (guard *enforcer) serve(ctx context.Context, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	go func() { <-ctx.Done(); listener.Close() }()
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			if err := guard.answer(connection); err != nil {
				slog.Error("pod held back", "error", err)
				fmt.Fprintf(connection, "error %v\n", err)
				return
			}
			fmt.Fprintln(connection, "ok")
		}()
	}
}

// answer reads `namespace name address` and returns once the rules hold for it.
func (guard *enforcer) answer(connection net.Conn) error {
	_ = connection.SetDeadline(time.Now().Add(2 * patience))
	line, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		return err
	}
	fields := strings.Fields(line)
	if len(fields) != 3 {
		return fmt.Errorf("not `namespace name address`: %q", line)
	}
	address, err := netip.ParseAddr(fields[2])
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for {
		if _, err := guard.pods.Pods(fields[0]).Get(fields[1]); err == nil {
			break
		} else if time.Now().After(deadline) {
			return fmt.Errorf("the watch has not shown pod %s/%s: %w", fields[0], fields[1], err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	guard.mu.Lock()
	guard.announced[fields[0]+"/"+fields[1]] = address
	guard.mu.Unlock()
	return guard.apply()
}

// sort puts pods and policies into a fixed order, so that equal states give equal rules.
func (state *snapshot) sort() {
	slices.SortFunc(state.pods, func(a, b pod) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	slices.SortFunc(state.policies, func(a, b *netv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}
