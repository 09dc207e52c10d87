// Command nodetool holds the small programs that a node of the test cluster runs
// often or many times: they must start in a millisecond and cost no memory, so
// they are not part of the large binary. The name it is called with chooses.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); name {
	case "pause":
		pause()
	case "runc-nosys":
		err = runc(os.Args[1:])
	case "netpol-gate":
		err = gate()
	case "forward":
		err = forward(os.Args[1:])
	default:
		err = fmt.Errorf("unknown program; link this file to pause, runc-nosys, netpol-gate or forward")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}
