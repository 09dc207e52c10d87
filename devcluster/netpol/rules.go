package netpol

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// table is the nft table that holds everything of this program and nothing else.
const table = "agentapi_netpol"

// pod is what a rule needs to know of a pod.
type pod struct {
	namespace, name string
	address         netip.Addr
	labels          labels.Set
	ports           []corev1.ContainerPort
	local           bool
}

// snapshot is the state of the cluster that one set of rules is made from.
type snapshot struct {
	pods       []pod
	namespaces map[string]labels.Set
	policies   []*netv1.NetworkPolicy
}

// direction tells which side of a connection a chain guards.
type direction struct {
	name, here, there string
	kind              netv1.PolicyType
}

var (
	ingress = direction{"in", "daddr", "saddr", netv1.PolicyTypeIngress}
	egress  = direction{"out", "saddr", "daddr", netv1.PolicyTypeEgress}
)

// render writes the whole table as an nft script that replaces it in one transaction.
// A pod that no policy selects in a direction has no chain there: it is open.
func render(state snapshot) (string, error) {
	var chains strings.Builder
	maps := map[string][]string{}
	for _, target := range state.pods {
		if !target.local {
			continue
		}
		for _, way := range []direction{ingress, egress} {
			rules, isolated, err := state.chain(target, way)
			if err != nil {
				return "", err
			}
			if !isolated {
				continue
			}
			name := fmt.Sprintf("%s_%s", way.name, strings.ReplaceAll(target.address.String(), ".", "_"))
			fmt.Fprintf(&chains, "  chain %s { # %s/%s\n", name, target.namespace, target.name)
			for _, rule := range rules {
				fmt.Fprintf(&chains, "    %s return\n", rule)
			}
			chains.WriteString("    counter drop\n  }\n")
			maps[way.name] = append(maps[way.name], fmt.Sprintf("%s : jump %s", target.address, name))
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "add table inet %s\ndelete table inet %s\ntable inet %s {\n%s", table, table, table, chains.String())
	// Forwarded packets are seen after the service address has become a pod's.
	// What a pod sends to the node itself passes `input` and not `forward`. What
	// the node sends (probes, the API server) is always let through.
	out.WriteString("  chain forward {\n    type filter hook forward priority 0; policy accept;\n    ct state established,related accept\n")
	dispatch(&out, egress, maps)
	dispatch(&out, ingress, maps)
	out.WriteString("  }\n  chain input {\n    type filter hook input priority 0; policy accept;\n    ct state established,related accept\n")
	dispatch(&out, egress, maps)
	out.WriteString("  }\n}\n")
	return out.String(), nil
}

func dispatch(out *strings.Builder, way direction, maps map[string][]string) {
	if entries := maps[way.name]; len(entries) > 0 {
		fmt.Fprintf(out, "    ip %s vmap { %s }\n", way.here, strings.Join(entries, ", "))
	}
}

// chain gives the matches that let a packet through, and whether any policy
// selects the pod in that direction at all.
func (state snapshot) chain(target pod, way direction) (rules []string, isolated bool, err error) {
	for _, policy := range state.policies {
		if policy.Namespace != target.namespace || !slices.Contains(types(policy), way.kind) {
			continue
		}
		selected, err := matches(&policy.Spec.PodSelector, target.labels)
		if err != nil {
			return nil, false, fmt.Errorf("policy %s/%s: %w", policy.Namespace, policy.Name, err)
		}
		if !selected {
			continue
		}
		isolated = true
		for _, rule := range allowances(policy, way) {
			more, err := state.allow(target, policy.Namespace, rule, way)
			if err != nil {
				return nil, false, fmt.Errorf("policy %s/%s: %w", policy.Namespace, policy.Name, err)
			}
			rules = append(rules, more...)
		}
	}
	return rules, isolated, nil
}

// allowance is an ingress or egress rule, without the difference.
type allowance struct {
	peers []netv1.NetworkPolicyPeer
	ports []netv1.NetworkPolicyPort
}

func allowances(policy *netv1.NetworkPolicy, way direction) (list []allowance) {
	if way.kind == netv1.PolicyTypeIngress {
		for _, rule := range policy.Spec.Ingress {
			list = append(list, allowance{rule.From, rule.Ports})
		}
		return list
	}
	for _, rule := range policy.Spec.Egress {
		list = append(list, allowance{rule.To, rule.Ports})
	}
	return list
}

// types are the directions a policy is about; the API server fills them in, and
// an old object without them is about ingress.
func types(policy *netv1.NetworkPolicy) []netv1.PolicyType {
	if len(policy.Spec.PolicyTypes) > 0 {
		return policy.Spec.PolicyTypes
	}
	return []netv1.PolicyType{netv1.PolicyTypeIngress}
}

// allow turns one rule into nft matches: every peer with every port.
func (state snapshot) allow(target pod, namespace string, rule allowance, way direction) ([]string, error) {
	var out []string
	if len(rule.peers) == 0 {
		return ports("", rule.ports, state.named(target, state.pods, way), way), nil
	}
	for _, peer := range rule.peers {
		if peer.IPBlock != nil {
			match, err := block(peer.IPBlock, way)
			if err != nil {
				return nil, err
			}
			if match != "" {
				out = append(out, ports(match, rule.ports, state.named(target, nil, way), way)...)
			}
			continue
		}
		found, err := state.selected(namespace, peer)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			out = append(out, ports(addresses(found, way), rule.ports, state.named(target, found, way), way)...)
		}
	}
	return out, nil
}

// named gives the pods whose container ports a port's name is looked up in: the
// guarded pod itself for what comes in, the peers for what goes out.
func (state snapshot) named(target pod, peers []pod, way direction) []pod {
	if way.kind == netv1.PolicyTypeIngress {
		return []pod{target}
	}
	return peers
}

func (state snapshot) selected(namespace string, peer netv1.NetworkPolicyPeer) (found []pod, err error) {
	for _, candidate := range state.pods {
		if peer.NamespaceSelector == nil {
			if candidate.namespace != namespace {
				continue
			}
		} else if ok, err := matches(peer.NamespaceSelector, state.namespaces[candidate.namespace]); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		if peer.PodSelector != nil {
			if ok, err := matches(peer.PodSelector, candidate.labels); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		found = append(found, candidate)
	}
	return found, nil
}

// block matches a range; "" for one that is not IPv4, which this cluster does not have.
func block(peer *netv1.IPBlock, way direction) (string, error) {
	prefix, err := netip.ParsePrefix(peer.CIDR)
	if err != nil {
		return "", err
	}
	if !prefix.Addr().Is4() {
		return "", nil
	}
	match := fmt.Sprintf("ip %s %s ", way.there, prefix)
	if len(peer.Except) > 0 {
		match += fmt.Sprintf("ip %s != { %s } ", way.there, strings.Join(peer.Except, ", "))
	}
	return match, nil
}

func addresses(pods []pod, way direction) string {
	list := make([]string, 0, len(pods))
	for _, found := range pods {
		list = append(list, found.address.String())
	}
	sort.Strings(list)
	return fmt.Sprintf("ip %s { %s } ", way.there, strings.Join(slices.Compact(list), ", "))
}

// ports appends the port matches to the peer match; no ports means all traffic.
func ports(peer string, list []netv1.NetworkPolicyPort, lookup []pod, way direction) (out []string) {
	if len(list) == 0 {
		return []string{peer}
	}
	for _, port := range list {
		protocol := corev1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		lower := strings.ToLower(string(protocol))
		switch {
		case port.Port == nil:
			out = append(out, fmt.Sprintf("%smeta l4proto %s", peer, lower))
		case port.Port.Type == intstr.Int && port.EndPort != nil:
			out = append(out, fmt.Sprintf("%s%s dport %d-%d", peer, lower, port.Port.IntVal, *port.EndPort))
		case port.Port.Type == intstr.Int:
			out = append(out, fmt.Sprintf("%s%s dport %d", peer, lower, port.Port.IntVal))
		default:
			out = append(out, byName(port.Port.StrVal, protocol, peer, lookup, way)...)
		}
	}
	return out
}

func byName(name string, protocol corev1.Protocol, peer string, lookup []pod, way direction) (out []string) {
	for _, candidate := range lookup {
		for _, port := range candidate.ports {
			same := port.Protocol == protocol || (port.Protocol == "" && protocol == corev1.ProtocolTCP)
			if port.Name != name || !same {
				continue
			}
			match := peer
			if way.kind == netv1.PolicyTypeEgress {
				match = addresses([]pod{candidate}, way)
			}
			out = append(out, fmt.Sprintf("%s%s dport %d", match, strings.ToLower(string(protocol)), port.ContainerPort))
		}
	}
	return out
}

func matches(selector *metav1.LabelSelector, set labels.Set) (bool, error) {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return false, err
	}
	return parsed.Matches(set), nil
}
