package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
)

// forward passes TCP connections from one address to another, byte for byte:
// `forward LISTEN TARGET`. kube-proxy's nftables mode does not serve node ports
// on loopback, and loopback is where the person's browser and curl look.
func forward(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: forward LISTEN TARGET")
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return fmt.Errorf("cannot listen on %s (is something else using the port?): %w", args[0], err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go pass(client.(*net.TCPConn), args[1])
	}
}

func pass(client *net.TCPConn, target string) {
	defer client.Close()
	upstream, err := net.Dial("tcp", target)
	if err != nil {
		log.Printf("%s is not reachable: %v", target, err)
		return
	}
	server := upstream.(*net.TCPConn)
	defer server.Close()
	done := make(chan struct{}, 2)
	for _, way := range [][2]*net.TCPConn{{client, server}, {server, client}} {
		go func() {
			_, _ = io.Copy(way[1], way[0])
			// Half-close: a client may have said all it has to say and still listen.
			_ = way[1].CloseWrite()
			done <- struct{}{}
		}()
	}
	<-done
	<-done
}
