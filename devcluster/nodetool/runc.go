package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// missing is the capability that some sandboxed machines cannot grant. runc fails
// as a whole when a container asks for it, so it is left out of what is asked.
const missing = "CAP_SYS_RESOURCE"

// runc is the real runc without that capability and what needs it: a negative
// OOM score and raised resource limits.
func runc(args []string) error {
	if slices.Contains(args, "create") || slices.Contains(args, "run") {
		bundle := flagValue(args, ".", "--bundle", "-b")
		if err := rewrite(filepath.Join(bundle, "config.json"), "process"); err != nil {
			return err
		}
	}
	if slices.Contains(args, "exec") {
		if file := flagValue(args, "", "--process", "-p"); file != "" {
			if err := rewrite(file, ""); err != nil {
				return err
			}
		}
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		return fmt.Errorf("no runc on PATH: install the package runc: %w", err)
	}
	return syscall.Exec(path, append([]string{"runc"}, args...), os.Environ())
}

// flagValue finds `--name value` or `--name=value`.
func flagValue(args []string, fallback string, names ...string) string {
	for i, arg := range args {
		for _, name := range names {
			if value, ok := strings.CutPrefix(arg, name+"="); ok {
				return value
			}
			if arg == name && i+1 < len(args) {
				return args[i+1]
			}
		}
	}
	return fallback
}

// rewrite edits the process description in the file: the document itself, or
// what it holds under key.
func rewrite(file, key string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	// Numbers stay as they are written: a float64 would damage large limits.
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.UseNumber()
	var document map[string]any
	if err := decoder.Decode(&document); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	process := document
	if key != "" {
		inner, ok := document[key].(map[string]any)
		if !ok {
			return nil
		}
		process = inner
	}
	soften(process)
	edited, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return os.WriteFile(file, edited, 0o600)
}

func soften(process map[string]any) {
	if sets, ok := process["capabilities"].(map[string]any); ok {
		for name, set := range sets {
			if list, ok := set.([]any); ok {
				sets[name] = slices.DeleteFunc(list, func(item any) bool { return item == missing })
			}
		}
	}
	if score, ok := process["oomScoreAdj"].(json.Number); ok && strings.HasPrefix(score.String(), "-") {
		process["oomScoreAdj"] = 0
	}
	delete(process, "rlimits")
}
