package netpol

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// cluster has a session and its neighbour in tenant a, and one pod in tenant b.
func cluster(policies ...*netv1.NetworkPolicy) snapshot {
	at := func(namespace, name, address, role string) pod {
		return pod{
			namespace: namespace, name: name, address: netip.MustParseAddr(address), labels: labels.Set{"role": role},
			ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}, local: true,
		}
	}
	return snapshot{
		pods: []pod{
			at("a", "session", "10.0.0.1", "session"),
			at("a", "api", "10.0.0.2", "api"),
			at("b", "other", "10.0.0.3", "api"),
		},
		namespaces: map[string]labels.Set{"a": {"tenant": "a"}, "b": {"tenant": "b"}},
		policies:   policies,
	}
}

func policy(spec netv1.NetworkPolicySpec) *netv1.NetworkPolicy {
	return &netv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}, Spec: spec}
}

// body gives the lines of one chain.
func body(t *testing.T, state snapshot, chain string) []string {
	t.Helper()
	script, err := render(state)
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(script, "chain "+chain+" {")
	if !found {
		return nil
	}
	inside, _, _ := strings.Cut(after, "\n  }")
	lines := strings.Split(inside, "\n")[1:]
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNoPolicyLeavesPodsOpen(t *testing.T) {
	script, err := render(cluster())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(script, "drop") {
		t.Errorf("a pod without a policy is closed:\n%s", script)
	}
}

func TestDefaultDenyClosesBothDirectionsInItsNamespaceOnly(t *testing.T) {
	state := cluster(policy(netv1.NetworkPolicySpec{
		PolicyTypes: []netv1.PolicyType{netv1.PolicyTypeIngress, netv1.PolicyTypeEgress},
	}))
	expect(t, body(t, state, "in_10_0_0_1"), "counter drop")
	expect(t, body(t, state, "out_10_0_0_1"), "counter drop")
	expect(t, body(t, state, "in_10_0_0_3"))
}

func TestIngressPeerWithoutNamespaceSelectorStaysInTheNamespace(t *testing.T) {
	state := cluster(policy(netv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"role": "session"}},
		PolicyTypes: []netv1.PolicyType{netv1.PolicyTypeIngress},
		Ingress: []netv1.NetworkPolicyIngressRule{{
			From:  []netv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "api"}}}},
			Ports: []netv1.NetworkPolicyPort{{Port: ptr(intstr.FromString("web"))}},
		}},
	}))
	expect(t, body(t, state, "in_10_0_0_1"), "ip saddr { 10.0.0.2 } tcp dport 8080 return", "counter drop")
}

func TestEgressByNamespaceBlockAndRange(t *testing.T) {
	state := cluster(policy(netv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"role": "session"}},
		PolicyTypes: []netv1.PolicyType{netv1.PolicyTypeEgress},
		Egress: []netv1.NetworkPolicyEgressRule{
			{
				To:    []netv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tenant": "b"}}}},
				Ports: []netv1.NetworkPolicyPort{{Protocol: ptr(corev1.ProtocolUDP), Port: ptr(intstr.FromInt32(53))}},
			},
			{
				To:    []netv1.NetworkPolicyPeer{{IPBlock: &netv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.8/32"}}}},
				Ports: []netv1.NetworkPolicyPort{{Port: ptr(intstr.FromInt32(8000)), EndPort: ptr(int32(8010))}},
			},
		},
	}))
	expect(t, body(t, state, "out_10_0_0_1"),
		"ip daddr { 10.0.0.3 } udp dport 53 return",
		"ip daddr 192.0.2.0/24 ip daddr != { 192.0.2.8/32 } tcp dport 8000-8010 return",
		"counter drop")
	expect(t, body(t, state, "in_10_0_0_1"))
}

func TestPeersThatSelectNobodyAllowNobody(t *testing.T) {
	state := cluster(policy(netv1.NetworkPolicySpec{
		PolicyTypes: []netv1.PolicyType{netv1.PolicyTypeIngress},
		Ingress: []netv1.NetworkPolicyIngressRule{{
			From: []netv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "nobody"}}}},
		}},
	}))
	expect(t, body(t, state, "in_10_0_0_1"), "counter drop")
}

func TestEmptyRuleAllowsEverything(t *testing.T) {
	state := cluster(policy(netv1.NetworkPolicySpec{
		PolicyTypes: []netv1.PolicyType{netv1.PolicyTypeIngress},
		Ingress:     []netv1.NetworkPolicyIngressRule{{}},
	}))
	expect(t, body(t, state, "in_10_0_0_1"), "return", "counter drop")
}

func ptr[T any](value T) *T { return &value }
