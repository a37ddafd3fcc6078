package main

// usage is the manual of imds-server.
const usage = `imds-server tells a KubeVirt guest its Kubernetes identity: the HTTP service at
http://169.254.169.254, and at http://[fe80::a9fe:a9fe] for guests without IPv4,
for the one VM of its virt-launcher pod.

Usage:
  imds-server [serve]      serve until SIGTERM or SIGINT; then finish the
                           requests in flight, at most 5 s. A second signal ends
                           it at once
  imds-server probe        exit 0 if /healthz answers 200 within 4 s, so that a
                           token can be had; else print the reason and exit 1
  imds-server probe -live  exit 0 if the server answers at all within 4 s: for a
                           livenessProbe, since a restart cures no missing token
  imds-server agent-metrics
                           serve what imds-init agent tells of itself on a Unix
                           socket to Prometheus, at /metrics, and nothing else
  imds-server --version    print the version
  imds-server --help       print this text

Exit status: 0 success, 1 failure, 2 wrong usage.

Endpoints, for GET and HEAD:
  /healthz       200 and OK, or 503 and the reason while there is no valid token
                 or the agent of the node has failed; while that waits, or is
                 not there, 200 and the reason
  /v1/token      {"token","expirationTimestamp"}; ?audience=A picks the token
                 for audience A; "Accept: application/jwt" gives the bare token
  /v1/identity   {"namespace","serviceAccountName","vmName","podName","vmiUID",
                 "nodeName"}; the last two only if known
  Errors are RFC 9457 problem documents that say what to do.

Environment:
  IMDS_TOKEN_PATH      file of the default token; the tokens for other audiences
                       are files in the folder "audiences" beside it
                       (default /var/run/secrets/tokens/token)
  IMDS_NAMESPACE       namespace of the pod (required)
  IMDS_POD_NAME        name of the pod (required)
  IMDS_VM_NAME         name of the VM (required)
  IMDS_SA_NAME         name of the pod's ServiceAccount (required)
  IMDS_VMI_UID         UID of the VirtualMachineInstance
  IMDS_NODE_NAME       name of the node
  IMDS_LISTEN_ADDR     IP address and port, or several with commas between; the
                       first is probed
                       (default 169.254.169.254:80,[fe80::a9fe:a9fe]:80)
  IMDS_REDIRECT_PORT   port to listen on, 1024 to 65535, to which imds-init
                       redirects what comes to the IPv4 address: for VMs with
                       the passt binding (default: that of IMDS_LISTEN_ADDR)
  IMDS_LISTEN_DEVICE   network device, no other is listened on; set, but empty:
                       all of them (default veth-imds)
  IMDS_REQUIRE_HEADER  "true": /v1/ wants the header "Metadata: true" (default
                       "false")
  IMDS_HOP_LIMIT       TTL and hop limit of the answers, 1 to 255; 1 keeps them
                       from the containers inside the guest (default: the
                       kernel's)
  IMDS_NODE_SOCKET     path of the socket on which the agent of the node is
                       handed the pod's network namespace, such as
                       /run/imds-node/imds.sock, in an emptyDir with the name
                       imds-node (default: none, since imds-init wires the pod)
  IMDS_BRIDGE_NAME     for that agent: the VM's bridge; see imds-init --help
  IMDS_PREFERRED_BRIDGE for that agent: the bridge to take of several
  IMDS_NETWORK         for that agent: the network that the VM's owner has named
  IMDS_METRICS_SOCKET  for agent-metrics: path of the agent's socket (required)
  IMDS_METRICS_ADDRESS for agent-metrics: where to listen, such as
                       192.0.2.1:9438 (required)

The server waits for each address and its device as long as it takes, and serves
the others meanwhile: a pod without IPv6 has no link-local address. A port
below 1024 wants the sysctl net.ipv4.ip_unprivileged_port_start, no capability.
`
