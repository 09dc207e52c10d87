package main

import (
	"os"
	"os/signal"
	"syscall"
)

// pause holds a pod's namespaces open: it reaps orphans, as the first process of
// a shared PID namespace must, and leaves when it is told to.
func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
