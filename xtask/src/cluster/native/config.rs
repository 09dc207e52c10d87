//! The configuration files of the native cluster's parts, as text (pure).

use super::layout::{API_PORT, DNS, Layout, NODE, NODE_IP, PAUSE_IMAGE, PODS, SERVICES};
use crate::gobuild::KUBERNETES;

/// What kubeadm needs to make keys, certificates and kubeconfig files.
pub(crate) fn kubeadm(layout: &Layout) -> String {
    let (socket, pki, etcd) = (layout.containerd(), layout.path("pki"), layout.path("etcd"));
    format!(
        "apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: {NODE_IP}, bindPort: {API_PORT}}}
nodeRegistration: {{name: {NODE}, criSocket: \"unix://{socket}\"}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: agentapi
kubernetesVersion: {KUBERNETES}
certificatesDir: {pki}
controlPlaneEndpoint: 127.0.0.1:{API_PORT}
encryptionAlgorithm: ECDSA-P256
certificateValidityPeriod: 87600h
apiServer: {{certSANs: [localhost, 127.0.0.1, {NODE_IP}]}}
etcd: {{local: {{dataDir: {etcd}, serverCertSANs: [localhost, 127.0.0.1]}}}}
networking: {{serviceSubnet: {SERVICES}, podSubnet: {PODS}, dnsDomain: cluster.local}}
"
    )
}

/// containerd with state of its own. `wrapper` replaces runc where a capability is missing.
pub(crate) fn containerd(layout: &Layout, wrapper: Option<&str>) -> String {
    let root = layout.path("containerd");
    let (cni, plugins) = (layout.path("cni"), layout.path("cni-bin"));
    let runc = wrapper.map(|file| format!("      BinaryName = \"{file}\"\n")).unwrap_or_default();
    format!(
        "version = 2
root = \"{root}/root\"
state = \"{root}/state\"
disabled_plugins = [\"io.containerd.internal.v1.opt\"]
[grpc]
  address = \"{root}/containerd.sock\"
[plugins.\"io.containerd.grpc.v1.cri\"]
  # Without CAP_SYS_RESOURCE no process may lower its OOM score, and every sandbox would fail.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  sandbox_image = \"{PAUSE_IMAGE}\"
  [plugins.\"io.containerd.grpc.v1.cri\".cni]
    bin_dir = \"{plugins}\"
    conf_dir = \"{cni}\"
  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
    runtime_type = \"io.containerd.runc.v2\"
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
{runc}"
    )
}

/// Point-to-point links and not a bridge: between two ports of a bridge netfilter
/// sees nothing, and network policies would have no say. The gate comes last: it
/// holds a pod back until the enforcer has written its rules.
pub(crate) fn cni(layout: &Layout) -> String {
    let (name, data, socket) = (layout.name(), layout.path("ipam"), layout.path("netpol.sock"));
    let conflist = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": name,
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": data,
                    "ranges": [[{"subnet": PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "netpol-gate", "socket": socket},
        ],
    });
    format!("{conflist:#}\n")
}

/// The kubelet, with every folder below the cluster's own.
pub(crate) fn kubelet(layout: &Layout) -> String {
    let (socket, pki, name) = (layout.containerd(), layout.path("pki"), layout.name());
    let (logs, plugins) = (layout.path("pod-logs"), layout.path("volume-plugins"));
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {pki}/ca.crt}}}}
authorization: {{mode: Webhook}}
cgroupDriver: cgroupfs
cgroupRoot: /{name}
clusterDNS: [{DNS}]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://{socket}
podLogsDir: {logs}
volumePluginDir: {plugins}
resolvConf: \"\"
failSwapOn: false
maxPods: 250
evictionHard: {{nodefs.available: 512Mi, imagefs.available: 512Mi, memory.available: 50Mi}}
evictionPressureTransitionPeriod: 30s
imageGCHighThresholdPercent: 100
serializeImagePulls: false
syncFrequency: 10s
"
    )
}

/// kube-proxy in nftables mode.
pub(crate) fn kube_proxy(layout: &Layout) -> String {
    let kubeconfig = layout.path("pki/kube-proxy.conf");
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: {NODE}
clusterCIDR: {PODS}
clientConnection: {{kubeconfig: {kubeconfig}}}
nodePortAddresses: [\"{NODE_IP}/32\"]
"
    )
}

/// Arguments of etcd. No fsync: the state of a test cluster need not survive a power cut.
pub(crate) fn etcd_args(layout: &Layout) -> Vec<String> {
    let (pki, data) = (layout.path("pki/etcd"), layout.path("etcd"));
    words(&format!(
        "--name=node1 --data-dir={data} --unsafe-no-fsync --client-cert-auth --peer-client-cert-auth \
         --listen-client-urls=https://127.0.0.1:2379 --advertise-client-urls=https://127.0.0.1:2379 \
         --listen-peer-urls=https://127.0.0.1:2380 --initial-advertise-peer-urls=https://127.0.0.1:2380 \
         --initial-cluster=node1=https://127.0.0.1:2380 \
         --trusted-ca-file={pki}/ca.crt --cert-file={pki}/server.crt --key-file={pki}/server.key \
         --peer-trusted-ca-file={pki}/ca.crt --peer-cert-file={pki}/peer.crt --peer-key-file={pki}/peer.key"
    ))
}

/// Arguments of the API server: the authorizers and admission plugins of a real cluster.
pub(crate) fn api_server_args(layout: &Layout) -> Vec<String> {
    let pki = layout.path("pki");
    words(&format!(
        "--etcd-servers=https://127.0.0.1:2379 --etcd-cafile={pki}/etcd/ca.crt \
         --etcd-certfile={pki}/apiserver-etcd-client.crt --etcd-keyfile={pki}/apiserver-etcd-client.key \
         --secure-port={API_PORT} --advertise-address={NODE_IP} --service-cluster-ip-range={SERVICES} \
         --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
         --client-ca-file={pki}/ca.crt --tls-cert-file={pki}/apiserver.crt --tls-private-key-file={pki}/apiserver.key \
         --kubelet-client-certificate={pki}/apiserver-kubelet-client.crt \
         --kubelet-client-key={pki}/apiserver-kubelet-client.key --kubelet-preferred-address-types=InternalIP \
         --service-account-issuer=https://kubernetes.default.svc.cluster.local \
         --service-account-key-file={pki}/sa.pub --service-account-signing-key-file={pki}/sa.key \
         --requestheader-client-ca-file={pki}/front-proxy-ca.crt --requestheader-allowed-names=front-proxy-client \
         --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
         --requestheader-username-headers=X-Remote-User \
         --proxy-client-cert-file={pki}/front-proxy-client.crt --proxy-client-key-file={pki}/front-proxy-client.key"
    ))
}

/// Arguments of the controller manager.
pub(crate) fn controller_manager_args(layout: &Layout) -> Vec<String> {
    let (pki, plugins) = (layout.path("pki"), layout.path("volume-plugins"));
    words(&format!(
        "--kubeconfig={pki}/controller-manager.conf --authentication-kubeconfig={pki}/controller-manager.conf \
         --authorization-kubeconfig={pki}/controller-manager.conf --bind-address=127.0.0.1 \
         --service-account-private-key-file={pki}/sa.key --root-ca-file={pki}/ca.crt \
         --cluster-signing-cert-file={pki}/ca.crt --cluster-signing-key-file={pki}/ca.key \
         --use-service-account-credentials --leader-elect=false --flex-volume-plugin-dir={plugins}"
    ))
}

/// Arguments of the scheduler.
pub(crate) fn scheduler_args(layout: &Layout) -> Vec<String> {
    let pki = layout.path("pki");
    words(&format!(
        "--kubeconfig={pki}/scheduler.conf --authentication-kubeconfig={pki}/scheduler.conf \
         --authorization-kubeconfig={pki}/scheduler.conf --bind-address=127.0.0.1 --leader-elect=false"
    ))
}

/// Arguments of the kubelet.
pub(crate) fn kubelet_args(layout: &Layout) -> Vec<String> {
    let (pki, config, root) = (layout.path("pki"), layout.path("kubelet.yaml"), layout.path("kubelet"));
    words(&format!(
        "--kubeconfig={pki}/kubelet.conf --config={config} --hostname-override={NODE} --root-dir={root} \
         --node-ip={NODE_IP} --cert-dir={root}/pki"
    ))
}

/// Arguments of the programs of our own that watch the cluster.
pub(crate) fn helper_args(layout: &Layout, last: &str) -> Vec<String> {
    words(&format!("--kubeconfig={} --node={NODE} {last}", layout.path("pki/node-helper.conf")))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
