#!/usr/bin/env bash
# Tests of charts/ and manifests/. Starts an API server and etcd of its own on loopback (no nodes, no controllers), so that
# installs, upgrades, Pod Security, RBAC and the definitions' own validation are the real ones. Needs jq, python3 and
# openssl; the rest comes from $HAWKEYE_CACHE/tools/bin.
#
#   charts/test.sh                                everything
#   KUBECONFIG=... charts/test.sh conform FILES   only: check FILES with kubeconform against that cluster's OpenAPI
set -euo pipefail
cd "$(dirname "$0")/.."

tools="${HAWKEYE_CACHE:-$HOME/.cache/hawkeye}/tools/bin"
export PATH="$tools:$PATH"
export KUBECTL="$tools/kubectl"
work=$(mktemp -d)
pids=()
cleanup() {
    # Nothing of theirs is kept, and an API server that lost its etcd would take minutes to end by itself.
    for pid in "${pids[@]}"; do { kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
# Helm must find neither the caller's repositories nor plugins.
export HELM_CONFIG_HOME="$work/helm" HELM_CACHE_HOME="$work/helm" HELM_DATA_HOME="$work/helm"

# Checks files with kubeconform; the schemas come from the cluster of KUBECONFIG and are made once per run.
conform() {
    [ -d "$work/schemas" ] || charts/schemas.py "$work/schemas"
    kubeconform -strict -summary \
        -schema-location "$work/schemas/{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json" "$@"
}
if [ "${1:-}" = conform ]; then
    shift
    conform "$@"
    exit
fi

passed=0
failed=0
report() { # status name [output file]
    if [ "$1" = 0 ]; then
        passed=$((passed + 1))
        echo "ok      $2"
    else
        failed=$((failed + 1))
        echo "FAILED  $2"
        head -40 "$3" | sed 's/^/        /'
    fi
}
# passes NAME COMMAND...: the command succeeds.
passes() {
    local name=$1 status=0
    shift
    "$@" >"$work/out" 2>&1 || status=$?
    report "$status" "$name" "$work/out"
}
# refuses NAME TEXT COMMAND...: the command fails and says TEXT (an extended regular expression).
refuses() {
    local name=$1 text=$2 status=0
    shift 2
    if "$@" >"$work/out" 2>&1; then
        echo "(was accepted)" >>"$work/out"
        status=1
    else
        grep -qiE -- "$text" "$work/out" || status=1
    fi
    report "$status" "$name" "$work/out"
}
negate() { if "$@"; then return 1; fi; }
# holds NAME FILTER: the jq filter is true of the JSON on standard input.
holds() {
    local status=0
    cat >"$work/in"
    jq -es "$2" <"$work/in" >"$work/out" 2>&1 || { status=1; cat "$work/in" >>"$work/out"; }
    report "$status" "$1" "$work/out"
}

template() { helm template hawkeye charts/hawkeye --namespace hawkeye-system "$@"; }

# --- without a cluster ------------------------------------------------------------------------------------------------

passes "generated files are up to date" charts/gen.sh --check
passes "lint hawkeye-crds" helm lint --strict charts/hawkeye-crds
for values in charts/hawkeye/ci/*-values.yaml; do
    passes "lint hawkeye with $(basename "$values")" helm lint --strict charts/hawkeye --values "$values"
done

# The plugin's archives, as a release has them. What is packed is not looked into, so a script stands in for the program.
printf '#!/bin/sh\necho "stand-in $*"\n' >"$work/plugin"
pack() { KREW_OUT="$work/krew" manifests/krew/package.sh "$@"; }
krew() { "$KUBECTL" label --local -f "$work/krew/hawkeye.yaml" -o json test=; }
sums() { (cd "$work/krew" && sha256sum -- *.tar.gz) | jq -Rn '[inputs | split("  ") | {(.[1]): .[0]}] | add'; }
passes "krew: pack the plugin for Linux" pack "$work/plugin" linux amd64
krew | holds "krew: a platform without an archive is left out" '.[0].spec.platforms | map(.selector.matchLabels) == [{os: "linux", arch: "amd64"}]'
sums >"$work/sums"
for platform in "linux arm64" "darwin amd64" "darwin arm64"; do
    # shellcheck disable=SC2086
    passes "krew: pack the plugin for $platform" pack "$work/plugin" $platform
done
{ krew; sums; } | holds "krew: each platform with the address of this version and the sum of its archive" '
    .[1] as $sums | .[0].spec | ("/releases/download/" + .version + "/") as $folder | .platforms
    | map(.selector.matchLabels | "\(.os)_\(.arch)") == ["linux_amd64", "linux_arm64", "darwin_amd64", "darwin_arm64"]
    and all(.[]; "kubectl-hawkeye_\(.selector.matchLabels.os)_\(.selector.matchLabels.arch).tar.gz" as $name
        | (.uri | endswith($folder + $name)) and .sha256 == $sums[$name] and .bin == "kubectl-hawkeye")'
krew | holds "krew: the version is that of the workspace" ".[0].spec.version == \"v$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)\""
touch "$work/plugin"
passes "krew: pack the plugin for Linux again, elsewhere" env TZ=Asia/Tokyo KREW_OUT="$work/krew" manifests/krew/package.sh "$work/plugin" linux amd64
{ cat "$work/sums"; sums; } | holds "krew: the same program makes the same archive" '
    map(.["kubectl-hawkeye_linux_amd64.tar.gz"]) | .[0] != null and .[0] == .[1]'
rm "$work/krew/kubectl-hawkeye_darwin_amd64.tar.gz"
passes "krew: fill in the manifest for what lies there" pack
krew | holds "krew: without the archive that is gone" '.[0].spec.platforms | length == 3 and all(.selector.matchLabels != {os: "darwin", arch: "amd64"})'
packed() { tar --numeric-owner -tvzf "$work/krew/kubectl-hawkeye_linux_amd64.tar.gz" | awk '{ print $1, $2, $6 }'; }
passes "krew: program and licence, root's" diff <(packed) <(printf '%s\n' "-rw-r--r-- 0/0 LICENSE" "-rwxr-xr-x 0/0 kubectl-hawkeye")
by_hand() {
    mkdir "$work/bin" && tar -C "$work/bin" -xzf "$work/krew/kubectl-hawkeye_linux_amd64.tar.gz" || return 1
    cmp "$work/bin/LICENSE" LICENSE && PATH="$work/bin:$PATH" "$KUBECTL" hawkeye plan --all-nodes | grep -qx "stand-in plan --all-nodes"
}
passes "krew: unpacked into a folder on PATH, kubectl finds it" by_hand

# Values that hold an open or a shared structure are one line in the README.
value_names() {
    jq -r '.properties | to_entries[] | .key as $key | .value.properties // {} | keys[] as $name
        | "\($key).\($name)"' charts/hawkeye/values.schema.json
    jq -r '.properties | to_entries[] | select(.value.properties == null and .key != "global").key' charts/hawkeye/values.schema.json
}
undocumented() { value_names | while read -r name; do grep -q "^| \`$name[\`.]" charts/hawkeye/README.md || echo "$name"; done; }
passes "every value is in the chart's README" negate grep . <(undocumented)

refuses "values: an unknown key" "additional propert.*replicas" template --set replicas=2
template --set leaderElection.enabled=false --set operator.replicas=1 >"$work/single.yaml"
passes "one operator without an election is replaced, never doubled" grep -q "type: Recreate" "$work/single.yaml"
passes "and needs neither a Lease nor a budget" negate grep -qE "kind: PodDisruptionBudget|leases" "$work/single.yaml"
refuses "values: an unknown nested key" "additional propert.*op" template --set images.op=x
refuses "values: a pull policy that does not exist" "pullPolicy" template --set images.pullPolicy=Sometimes
refuses "values: an image with a space" "images/cpu" template --set "images.cpu=a b"
refuses "values: two default models" "defaultModel" template \
    --set defaultModel.image.reference=a/b:c --set defaultModel.persistentVolumeClaim.claimName=d
refuses "values: a registry with a scheme" "registries" template --set 'imageVerification.registries={https://ghcr.io}'
refuses "values: a registry of images with a scheme" "images/registry" template --set images.registry=https://ghcr.io/team
refuses "values: a pull secret without a namespace" "namespace" template --set 'imageVerification.pullSecrets[0].name=x'
refuses "values: a certificate that is none" "caCertificates" template --set imageVerification.caCertificates=x
refuses "values: a default model without its reference" "reference" template --set defaultModel.image.pullPolicy=Never
refuses "values: a host path as default model" "hostPath" template --set defaultModel.hostPath=/models
refuses "values: an archive without its sum" "sha256" template --set defaultModel.http.url=https://example.com/b.tar
refuses "values: an archive with a password" "url" template --set defaultModel.http.url=https://u:p@example.com/b.tar \
    --set defaultModel.http.sha256="$(printf 'a%.0s' {1..64})"
refuses "values: a model of which only the revision is known" "defaultModel" template --set-string defaultModel.revision=2
refuses "values: a bad claim name" "claimName" template --set defaultModel.persistentVolumeClaim.claimName=Bad_Name
refuses "values: a batch of zero" "balanced" template --set hardwareClasses.graviton.batchSize.balanced=0
refuses "values: a batch over the definition's bound" "maximum" template --set hardwareClassDefaults.batchSize.speed=2000
refuses "values: an unknown field of a class" "additional propert.*gpus" template --set hardwareClasses.graviton.gpus=1
refuses "values: an unknown class" "no built-in class of that name; there are .*dgx-spark" \
    template --set hardwareClasses.dgx-sprak.priority=1
refuses "values: text for a number" "priority" template --set-string hardwareClasses.graviton.priority=high
refuses "values: a boolean as text" "enabled" template --set-string builtinClasses.enabled=true
refuses "values: a log format that does not exist" "logFormat" template --set operator.logFormat=xml
refuses "values: a duration without a unit" "leaseDuration" template --set-string leaderElection.leaseDuration=20
refuses "values: a leader that goes on for longer than its lease" "renewDeadline \(20s\) must be shorter" template \
    --set leaderElection.renewDeadline=20s
refuses "values: a lease that ends before its leader" "must be shorter than leaseDuration \(1s\)" template --set leaderElection.leaseDuration=1s
refuses "values: no time for a second try" "retryPeriod \(8s\) must be .* half of renewDeadline" template \
    --set leaderElection.retryPeriod=8s
refuses "values: a lease of parts of a second" "whole seconds" template --set leaderElection.leaseDuration=20s500ms
passes "values: durations of an election that fit" template --set leaderElection.leaseDuration=1m30s \
    --set leaderElection.renewDeadline=1m --set leaderElection.retryPeriod=500ms
passes "values: durations of an election that there is none" template --set leaderElection.enabled=false \
    --set operator.replicas=1 --set leaderElection.renewDeadline=20s
refuses "values: two operators without an election" "needs leaderElection.enabled" template --set leaderElection.enabled=false
refuses "values: an endpoint for traces without a scheme" "endpoint" template --set operator.tracing.endpoint=collector:4318
template --set operator.tracing.endpoint=http://collector:4318 >"$work/traced.yaml"
passes "an endpoint for traces reaches the operator" grep -A1 "OTEL_EXPORTER_OTLP_ENDPOINT" "$work/traced.yaml"
refuses "values: no service account at all" "serviceAccount.name is needed" template --set serviceAccount.create=false
refuses "values: the CRD chart has none" "additional propert" helm template crds charts/hawkeye-crds --set keep=false
refuses "an old cluster" "incompatible with Kubernetes" template --kube-version 1.32.0

# What the Prometheus operator reads is rendered only where it can be read.
for kind in serviceMonitor podMonitor; do
    refuses "metrics.$kind without its definitions" "metrics.$kind.enabled needs the definitions" template --set "metrics.$kind.enabled=true"
done
refuses "a ServiceMonitor without its Service" "needs metrics.service.enabled" template --api-versions monitoring.coreos.com/v1 \
    --set metrics.serviceMonitor.enabled=true --set metrics.service.enabled=false
refuses "values: an interval that is none" "interval" template --set metrics.podMonitor.interval=often

# --- with an API server -----------------------------------------------------------------------------------------------

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
start_api_server() {
    local etcd_port peer_port port
    etcd_port=$(free_port) peer_port=$(free_port) port=$(free_port)
    "$tools/etcd" --data-dir "$work/etcd" --listen-client-urls "http://127.0.0.1:$etcd_port" \
        --advertise-client-urls "http://127.0.0.1:$etcd_port" --listen-peer-urls "http://127.0.0.1:$peer_port" \
        --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" --initial-cluster "default=http://127.0.0.1:$peer_port" \
        --unsafe-no-fsync --log-level error >"$work/etcd.log" 2>&1 &
    pids+=($!)
    openssl genrsa -out "$work/sa.key" 2048 2>/dev/null
    echo 'tests,tests,tests,system:masters' >"$work/tokens.csv"
    "$tools/kube-apiserver" --etcd-servers "http://127.0.0.1:$etcd_port" --bind-address 127.0.0.1 --secure-port "$port" \
        --advertise-address 127.0.0.1 --endpoint-reconciler-type none --cert-dir "$work/certs" \
        --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$work/sa.key" \
        --service-account-signing-key-file "$work/sa.key" --token-auth-file "$work/tokens.csv" \
        --authorization-mode RBAC --service-cluster-ip-range 10.96.0.0/24 \
        --disable-admission-plugins ServiceAccount \
        --enable-admission-plugins OwnerReferencesPermissionEnforcement >"$work/kube-apiserver.log" 2>&1 &
    pids+=($!)
    export KUBECONFIG="$work/kubeconfig"
    "$KUBECTL" config set-cluster tests --server "https://127.0.0.1:$port" --insecure-skip-tls-verify >/dev/null
    "$KUBECTL" config set-credentials tests --token tests >/dev/null
    "$KUBECTL" config set-context tests --cluster tests --user tests >/dev/null
    "$KUBECTL" config use-context tests >/dev/null
    for _ in $(seq 120); do
        [ "$("$KUBECTL" get --raw /readyz 2>/dev/null)" = ok ] && return 0
        kill -0 "${pids[-1]}" 2>/dev/null || break
        sleep 0.5
    done
    echo "the API server did not become ready" >&2
    tail -n 20 "$work/kube-apiserver.log" "$work/etcd.log" >&2
    return 1
}
start_api_server

objects() { "$KUBECTL" create --dry-run=client -o json -f "${1:--}"; }
class() { "$KUBECTL" get hardwareclass "$1" -o json; }
crds="hawkeyedeployments.hawkeye.bytebot.ai hardwareclasses.hawkeye.bytebot.ai"

install_crds() { # shellcheck disable=SC2086
    helm upgrade --install hawkeye-crds charts/hawkeye-crds --namespace hawkeye-system --wait --timeout 1m &&
        "$KUBECTL" wait --for=condition=Established --timeout=30s crd $crds
}

"$KUBECTL" create namespace hawkeye-system >/dev/null
"$KUBECTL" label namespace hawkeye-system pod-security.kubernetes.io/enforce=restricted >/dev/null

refuses "hawkeye before hawkeye-crds" "no matches for kind \"HardwareClass\"" \
    helm install hawkeye charts/hawkeye --namespace hawkeye-system
helm uninstall hawkeye --namespace hawkeye-system >/dev/null 2>&1 || true
passes "install hawkeye-crds" install_crds
passes "install hawkeye" helm install hawkeye charts/hawkeye --namespace hawkeye-system
"$KUBECTL" get hardwareclasses -o json | holds "the built-in classes are there, as in crds/classes" \
    ".[0].items | length == $(find crds/classes -name '*.yaml' | wc -l)"
for file in crds/classes/*.yaml; do
    name=$(basename "$file" .yaml)
    # Both with the API server's defaults.
    { objects "$file" | jq '.metadata.name = "probe"' | "$KUBECTL" create --dry-run=server -o json -f -; class "$name"; } |
        holds "class $name is what its file says" '.[0].spec == .[1].spec'
done

operator() { "$KUBECTL" -n hawkeye-system get deployment hawkeye-operator -o json; }
operator | holds "the operator: one replica, recreated, images of this release, no default model" '
    .[0].spec as $spec | $spec.template.spec.containers[0] as $c | ($c.env | map({(.name): .value}) | add) as $env
    | $spec.replicas == 2 and $spec.strategy.type == "RollingUpdate" and $env.HAWKEYE_LEASE_NAME == "hawkeye-operator"
    and $c.image == "ghcr.io/bytebot-ai/hawkeye-operator:0.1.0" and $c.imagePullPolicy == "IfNotPresent"
    and $env.HAWKEYE_IMAGE_CPU == "ghcr.io/bytebot-ai/hawkeye-inference:0.1.0-cpu"
    and $env.HAWKEYE_IMAGE_CUDA == "ghcr.io/bytebot-ai/hawkeye-inference:0.1.0-cuda"
    and ($env | has("HAWKEYE_DEFAULT_MODEL") | not)'
operator | holds "by default only the registry of the release's images is asked, and no Secret is read" '
    .[0].spec.template.spec.containers[0].env | map({(.name): .value}) | add
    | .HAWKEYE_VERIFY_REGISTRIES == "ghcr.io/bytebot-ai" and (keys | map(select(startswith("HAWKEYE_VERIFY"))) | length == 1)'
operator | holds "the metrics Service selects the operator" "
    (.[0].spec.template.metadata.labels) as \$labels
    | $("$KUBECTL" -n hawkeye-system get service hawkeye-operator-metrics -o json | jq -c .spec.selector)
    | to_entries | all(\$labels[.key] == .value)"

# The rules, as the API server reads them.
me=system:serviceaccount:hawkeye-system:hawkeye-operator
"$KUBECTL" get clusterrole hawkeye-operator -o json | holds "the operator's role has no wildcard and no secrets" '
    [.[0].rules[] | .apiGroups[], .resources[], .verbs[]] | all(. != "*" and . != "secrets")'
can() { "$KUBECTL" auth can-i --quiet --as "$me" --all-namespaces "$@"; }
for allowed in "list nodes" "watch pods" "watch hawkeyedeployments.hawkeye.bytebot.ai" "list hardwareclasses.hawkeye.bytebot.ai" \
    "patch hawkeyedeployments.hawkeye.bytebot.ai --subresource=status" "create deployments.apps" "delete deployments.apps" \
    "patch services" "create events.events.k8s.io" "delete networkpolicies.networking.k8s.io" "patch poddisruptionbudgets.policy"; do
    # shellcheck disable=SC2086
    passes "the operator may $allowed" can $allowed
done
for denied in "get secrets" "patch nodes" "create pods" "get pods --subresource=proxy" "create pods --subresource=exec" \
    "patch hawkeyedeployments.hawkeye.bytebot.ai" "delete hawkeyedeployments.hawkeye.bytebot.ai" \
    "patch hardwareclasses.hawkeye.bytebot.ai" "update deployments.apps" "create clusterroles.rbac.authorization.k8s.io" \
    "create serviceaccounts --subresource=token" "get configmaps" "delete services" "get nodes" "get pods"; do
    # shellcheck disable=SC2086
    passes "the operator may not $denied" negate can $denied
done

# Pull secrets: those that the values name, where they name them, and nothing else.
"$KUBECTL" create namespace vision >/dev/null
passes "upgrade: two pull secrets of one namespace" helm upgrade hawkeye charts/hawkeye --namespace hawkeye-system \
    --set 'imageVerification.registries={registry.example.com/team}' \
    --set 'imageVerification.pullSecrets[0].namespace=vision,imageVerification.pullSecrets[0].name=one' \
    --set 'imageVerification.pullSecrets[1].namespace=vision,imageVerification.pullSecrets[1].name=two'
can_in() { "$KUBECTL" auth can-i --quiet --as "$me" --namespace "$@"; }
passes "the operator may get the first" can_in vision get secrets/one
passes "the operator may get the second" can_in vision get secrets/two
for denied in "vision get secrets/three" "vision list secrets" "vision watch secrets/one" "vision patch secrets/one" \
    "default get secrets/one" "hawkeye-system get secrets/one"; do
    # shellcheck disable=SC2086
    passes "the operator may not: $denied" negate can_in $denied
done
operator | holds "the operator is told which" '
    .[0].spec.template.spec.containers[0].env | map({(.name): .value}) | add
    | .HAWKEYE_VERIFY_PULL_SECRETS == "vision/one,vision/two" and .HAWKEYE_VERIFY_REGISTRIES == "registry.example.com/team"'
passes "upgrade: verification off" helm upgrade hawkeye charts/hawkeye --namespace hawkeye-system --reuse-values \
    --set imageVerification.enabled=false
passes "off, it may get none" negate can_in vision get secrets/one
operator | holds "off, it is told nothing" '
    .[0].spec.template.spec.containers[0].env | all(.name | startswith("HAWKEYE_VERIFY") | not)'
passes "back to the default values" helm upgrade hawkeye charts/hawkeye --namespace hawkeye-system --reset-values
lease() { "$KUBECTL" auth can-i --quiet --as "$me" --namespace "$1" "$2" "leases.coordination.k8s.io$3"; }
passes "the operator may renew its own Lease" lease hawkeye-system update /hawkeye-operator
passes "the operator may create a Lease beside it" lease hawkeye-system create ""
passes "the operator may not renew another Lease" negate lease hawkeye-system update /other
passes "the operator may not delete its Lease" negate lease hawkeye-system delete /hawkeye-operator
passes "the operator may not touch Leases of nodes" negate lease kube-node-lease update /hawkeye-operator

# What the operator makes is owned by a HawkeyeDeployment and blocks its deletion: the strictest clusters let it.
owned() {
    jq -n --arg uid "$("$KUBECTL" -n default get hkd owner -o jsonpath='{.metadata.uid}')" '{apiVersion: "v1", kind: "Service",
        metadata: {name: "owned", namespace: "default", ownerReferences: [{apiVersion: "hawkeye.bytebot.ai/v1alpha1",
            kind: "HawkeyeDeployment", name: "owner", uid: $uid, controller: true, blockOwnerDeletion: true}]},
        spec: {ports: [{port: 9989}]}}'
}
sample_object() {
    printf '{"apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment", "metadata": {"name": "%s"}, "spec": {}}' "$1"
}
passes "a HawkeyeDeployment with an empty spec" "$KUBECTL" -n default create -f <(sample_object owner)
passes "the operator may own what it makes" "$KUBECTL" --as "$me" apply --server-side --field-manager probe -f <(owned)
"$KUBECTL" -n default delete --ignore-not-found hkd/owner service/owned >/dev/null

# A pod of the operator, put before Pod Security.
operator_pod() {
    jq '.spec.template | {apiVersion: "v1", kind: "Pod", metadata: {name: "probe", labels: .metadata.labels}, spec: .spec}'
}
admit() { "$KUBECTL" -n hawkeye-system create --dry-run=server -f -; }
operator | operator_pod >"$work/pod.json"
passes "Pod Security restricted admits the operator's pod" admit <"$work/pod.json"
jq 'del(.spec.securityContext.seccompProfile)' "$work/pod.json" >"$work/loose.json"
refuses "Pod Security refuses it without its seccomp profile" "violates PodSecurity \"restricted" admit <"$work/loose.json"

# Values change what is installed.
passes "upgrade with other values" helm upgrade hawkeye charts/hawkeye --namespace hawkeye-system \
    --values charts/hawkeye/ci/spark-values.yaml
class dgx-spark | holds "a class's values replace its own, zero too, and leave the rest" '
    .[0].spec | .priority == 0 and .memory.limit == "12Gi" and .memory.unified == true
    and .batchSize.quality == 256 and .batchSize.balanced == 128 and .device == "Cuda"'
"$KUBECTL" get hardwareclasses -o json | holds "default tolerations are added to every class" '
    .[0].items | all(.spec.tolerations | any(.key == "dedicated"))'
{ objects crds/classes/dgx-spark.yaml; class dgx-spark; } | holds "and the class's own tolerations stay" '
    (.[0].spec.tolerations // []) - .[1].spec.tolerations == []'
operator | holds "the default model reaches the operator as JSON" '
    .[0].spec.template.spec.containers[0].env[] | select(.name == "HAWKEYE_DEFAULT_MODEL").value | fromjson
    == {image: {reference: "registry.example.com/team/hawkeye-bundle:v2", pullPolicy: "IfNotPresent"}}'
refuses "a class that contradicts itself" "resource must be set when device is Cuda" helm upgrade hawkeye charts/hawkeye \
    --namespace hawkeye-system --set hardwareClasses.dgx-spark.resource=null
passes "back to the default values" helm upgrade hawkeye charts/hawkeye --namespace hawkeye-system --reset-values
class dgx-spark | holds "the class is as before" '.[0].spec | .memory.limit == "8Gi" and .batchSize.quality == 128'

# Everything that is rendered or shipped, against the API server's own schemas.
for values in charts/hawkeye/ci/*-values.yaml; do
    template --values "$values" >"$work/$(basename "$values")"
done
passes "kubeconform: install.yaml, samples, the chart with each values file" \
    conform manifests/install.yaml manifests/samples/*.yaml "$work"/*-values.yaml
sed 's/replicas: 2/replica: 2/' manifests/install.yaml >"$work/wrong.yaml"
refuses "kubeconform sees a misspelt field" "replica" conform "$work/wrong.yaml"
passes "server-side validation: the chart from a mirror" \
    "$KUBECTL" create --dry-run=server --validate=strict -f "$work/mirror-values.yaml"
for sample in manifests/samples/*.yaml; do
    # Warnings are failures: a sample must not show a deprecated or unknown field.
    passes "the API server takes $(basename "$sample")" \
        "$KUBECTL" create --dry-run=server --validate=strict --warnings-as-errors -f "$sample"
done
"$KUBECTL" get --raw /openapi/v3/apis/hawkeye.bytebot.ai/v1alpha1 |
    jq '.components.schemas[] | select(.["x-kubernetes-group-version-kind"][0].kind == "HardwareClass").properties.spec.properties' |
    cat - charts/hawkeye/values.schema.json | holds "the values schema knows exactly the fields of a class" '
        .[1].definitions.hardwareClassSpec.properties as $values | .[0] as $crd
        | ($values | keys) == ($crd | keys)
        and ([$values, $crd] | map([.batchSize, .memory, .cpu | .properties | keys]) | .[0] == .[1])'

# Monitors, once the definitions of the Prometheus operator are there; here they know the fields that are used.
monitor_crd() { # KIND plural SPEC_SCHEMA
    jq -n --arg kind "$1" --arg plural "$2" --argjson spec "$3" '{apiVersion: "apiextensions.k8s.io/v1", kind: "CustomResourceDefinition",
        metadata: {name: "\($plural).monitoring.coreos.com"}, spec: {group: "monitoring.coreos.com", scope: "Namespaced",
            names: {kind: $kind, plural: $plural}, versions: [{name: "v1", served: true, storage: true, schema: {openAPIV3Schema:
                {type: "object", properties: {spec: {type: "object", properties: $spec}}}}}]}}'
}
strings='{"type": "array", "items": {"type": "string"}}'
endpoints='{"type": "array", "items": {"type": "object", "properties": {"port": {"type": "string"}, "path": {"type": "string"}, "interval": {"type": "string"}}}}'
selectors='"selector": {"type": "object", "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}}},
    "namespaceSelector": {"type": "object", "properties": {"any": {"type": "boolean"}, "matchNames": '$strings'}}'
{ monitor_crd ServiceMonitor servicemonitors "{$selectors, \"endpoints\": $endpoints}"
    monitor_crd PodMonitor podmonitors "{$selectors, \"podTargetLabels\": $strings, \"podMetricsEndpoints\": $endpoints}"; } |
    "$KUBECTL" create -f - >/dev/null
"$KUBECTL" wait --for=condition=Established --timeout=30s crd/servicemonitors.monitoring.coreos.com crd/podmonitors.monitoring.coreos.com >/dev/null
passes "upgrade with monitors and dashboard" helm upgrade hawkeye charts/hawkeye --namespace hawkeye-system --reset-values \
    --set metrics.serviceMonitor.enabled=true --set metrics.serviceMonitor.labels.release=prometheus \
    --set metrics.podMonitor.enabled=true --set metrics.podMonitor.interval=1m --set metrics.dashboard.enabled=true
monitor() { "$KUBECTL" -n hawkeye-system get "$1" "$2" -o json; }
{ monitor servicemonitor hawkeye-operator; monitor service hawkeye-operator-metrics; } | holds "the ServiceMonitor selects the operator's Service and port" '
    .[0].spec.selector.matchLabels as $wanted | .[1].metadata.labels as $labels | .[0].metadata.labels.release == "prometheus"
    and ($wanted | to_entries | all($labels[.key] == .value)) and .[0].spec.endpoints[0].port == .[1].spec.ports[0].name'
monitor podmonitor hawkeye-inference | holds "the PodMonitor selects parsers everywhere" '
    .[0].spec | .namespaceSelector == {any: true} and .podMetricsEndpoints == [{port: "http", path: "/metrics", interval: "1m"}]
    and .selector.matchLabels == {"app.kubernetes.io/name": "hawkeye-inference", "app.kubernetes.io/managed-by": "hawkeye-operator"}'
monitor configmap hawkeye-dashboard | holds "the dashboard is JSON, labelled for Grafana's sidecar" '
    .[0].metadata.labels.grafana_dashboard == "1" and (.[0].data["hawkeye.json"] | fromjson | .uid == "hawkeye")'

# In a few namespaces only: the same rights there, and elsewhere none but to read what has no namespace.
for name in team-a team-b; do "$KUBECTL" create namespace "$name" >/dev/null; done
passes "upgrade to two namespaces" helm upgrade hawkeye charts/hawkeye --namespace hawkeye-system --reset-values \
    --set 'watch.namespaces={team-a,team-b}' --set metrics.podMonitor.enabled=true
monitor podmonitor hawkeye-inference | holds "the PodMonitor looks where the operator does" \
    '.[0].spec.namespaceSelector == {matchNames: ["team-a", "team-b"]}'
operator | holds "the operator is told its namespaces" '.[0].spec.template.spec.containers[0].env
    | any(.name == "HAWKEYE_WATCH_NAMESPACES" and .value == "team-a,team-b")'
there() { "$KUBECTL" auth can-i --quiet --as "$me" "$@"; }
for right in "create deployments.apps" "patch hawkeyedeployments.hawkeye.bytebot.ai --subresource=status" "list pods" \
    "watch hawkeyedeployments.hawkeye.bytebot.ai" "patch services" "create events.events.k8s.io" \
    "delete poddisruptionbudgets.policy" "create networkpolicies.networking.k8s.io"; do
    # shellcheck disable=SC2086
    passes "in team-a it may $right" there -n team-a $right
    # shellcheck disable=SC2086
    passes "in default it may not $right" negate there -n default $right
done
for right in "list nodes" "watch hardwareclasses.hawkeye.bytebot.ai"; do
    # shellcheck disable=SC2086
    passes "for the whole cluster it may $right" can $right
done
{ "$KUBECTL" get clusterrole hawkeye-operator -o json; "$KUBECTL" -n team-b get role hawkeye-operator -o json; objects manifests/install.yaml |
    jq 'select(.kind == "ClusterRole" and .metadata.name == "hawkeye-operator")'; } | holds "both roles together are the one of a whole cluster, less the status of the classes" '
    (.[0].rules + .[1].rules + [{apiGroups: ["hawkeye.bytebot.ai"], resources: ["hardwareclasses/status"], verbs: ["patch"]}] | sort)
        == (.[2].rules | sort)'
refuses "values: a namespace that cannot be" "watch/namespaces" template --set 'watch.namespaces={Team A}'
passes "back to the whole cluster" helm upgrade hawkeye charts/hawkeye --namespace hawkeye-system --reset-values
"$KUBECTL" get roles,rolebindings -A -o json | holds "no Role of it is left but that of its Lease" '
    [.[0].items[] | select(.metadata.labels["app.kubernetes.io/part-of"] == "hawkeye").metadata.name] | unique == ["hawkeye-operator-lease"]'

"$KUBECTL" -n hawkeye-system get servicemonitors,podmonitors,configmaps -o json | holds "no monitor or dashboard is left" '
    [.[0].items[] | select(.metadata.labels["app.kubernetes.io/part-of"] == "hawkeye")] == []'

# Gone and back again: definitions and what users made stay.
"$KUBECTL" -n default create -f <(sample_object kept) >/dev/null
passes "uninstall hawkeye" helm uninstall hawkeye --namespace hawkeye-system
"$KUBECTL" get hardwareclasses,clusterroles,clusterrolebindings,roles,rolebindings,deployments,services,serviceaccounts,poddisruptionbudgets -A -o json |
    holds "nothing of the release is left" '[.[0].items[] | select(.metadata.labels["app.kubernetes.io/part-of"] == "hawkeye")] == []'
passes "uninstall hawkeye-crds" helm uninstall hawkeye-crds --namespace hawkeye-system
passes "the HawkeyeDeployment outlives both" "$KUBECTL" -n default get hkd kept
passes "install hawkeye-crds again over what was kept" install_crds
passes "install hawkeye again" helm install hawkeye charts/hawkeye --namespace hawkeye-system
helm get notes hawkeye --namespace hawkeye-system | jq -R . | holds "the notes warn that there is no model" \
    'any(contains("defaultModel is empty"))'
helm uninstall hawkeye --namespace hawkeye-system >/dev/null || true
helm uninstall hawkeye-crds --namespace hawkeye-system >/dev/null || true
# shellcheck disable=SC2086
"$KUBECTL" delete --ignore-not-found crd $crds >/dev/null

# The same without Helm, as the head of install.yaml says.
passes "install.yaml: the definitions" "$KUBECTL" apply --server-side -f manifests/install.yaml -l app.kubernetes.io/name=hawkeye-crds
passes "install.yaml: served" "$KUBECTL" wait --for=condition=Established --timeout=30s crd -l app.kubernetes.io/name=hawkeye-crds
passes "install.yaml: the rest" "$KUBECTL" apply --server-side -f manifests/install.yaml
passes "install.yaml: again" "$KUBECTL" apply --server-side -f manifests/install.yaml

echo "charts: $passed passed, $failed failed"
[ "$failed" = 0 ]
