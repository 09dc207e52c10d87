package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// gateConfig is what the CNI gate reads of its network configuration.
type gateConfig struct {
	CNIVersion string          `json:"cniVersion"`
	Socket     string          `json:"socket"`
	PrevResult json.RawMessage `json:"prevResult"`
}

// gate is a CNI plugin, the last of the chain: it holds a new pod back until the
// enforcer has written the rules for its address. No enforcer, no pod: a policy
// that is not enforced must not look as if it were.
func gate() error {
	if os.Getenv("CNI_COMMAND") == "VERSION" {
		_, err := fmt.Println(`{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}`)
		return err
	}
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var config gateConfig
	if err := json.Unmarshal(raw, &config); err != nil {
		return err
	}
	if os.Getenv("CNI_COMMAND") != "ADD" {
		return nil
	}
	if err := ask(config); err != nil {
		// The error format that CNI asks for, on standard output.
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{
			"cniVersion": config.CNIVersion, "code": 11, "msg": "netpol: " + err.Error(),
		})
		return err
	}
	_, err = os.Stdout.Write(config.PrevResult)
	return err
}

func ask(config gateConfig) error {
	var previous struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(config.PrevResult, &previous); err != nil || len(previous.IPs) == 0 {
		return errors.New("no address from the plugin before")
	}
	address, _, _ := strings.Cut(previous.IPs[0].Address, "/")
	names := map[string]string{}
	for _, pair := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		key, value, _ := strings.Cut(pair, "=")
		names[key] = value
	}
	connection, err := net.DialTimeout("unix", config.Socket, 2*time.Second)
	if err != nil {
		return fmt.Errorf("the enforcer does not run: %w", err)
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(12 * time.Second))
	fmt.Fprintf(connection, "%s %s %s\n", names["K8S_POD_NAMESPACE"], names["K8S_POD_NAME"], address)
	answer, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		return err
	}
	if strings.TrimSpace(answer) != "ok" {
		return errors.New(strings.TrimSpace(answer))
	}
	return nil
}
