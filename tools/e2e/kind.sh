#!/usr/bin/env bash
# The checks of the overlay kind, on kind with the real KubeVirt: makes the
# cluster, installs KubeVirt from its release, loads the two images, checks, and
# deletes the cluster. Needs docker, kind, kubectl, just and Go, not root.
# Arguments, such as -keep, go to the tests.
set -euo pipefail

version=${KUBEVIRT_VERSION:-v1.9.0}
release=https://github.com/kubevirt/kubevirt/releases/download/$version
repository=$(cd "$(dirname "$0")/../.." && pwd)
cluster=kubevirt-imds-e2e

for program in docker kind kubectl just go; do
  command -v "$program" >/dev/null || { echo "just e2e kind needs $program in the PATH" >&2; exit 1; }
done

KUBECONFIG=$(mktemp)
export KUBECONFIG
trap 'kind delete cluster --name "$cluster"; rm -f "$KUBECONFIG"' EXIT
kind create cluster --name "$cluster" --config "$repository/overlays/kind/cluster.yaml" --wait 3m

kubectl apply -f "$release/kubevirt-operator.yaml"
kubectl apply -f "$release/kubevirt-cr.yaml"
# Where the machine has no KVM, QEMU emulates.
[ -e /dev/kvm ] || kubectl patch --namespace kubevirt kubevirt kubevirt --type merge \
  --patch '{"spec": {"configuration": {"developerConfiguration": {"useEmulation": true}}}}'
just --justfile "$repository/justfile" kind-load "$cluster"
kubectl wait --namespace kubevirt kubevirt kubevirt --for condition=Available --timeout 15m

cd "$repository/tools/e2e"
go test -count=1 -v -timeout 30m ./checks -kubeconfig "$KUBECONFIG" "$@"
