#!/usr/bin/env bash
# Publishes a release: image indexes with signatures and SBOMs, the charts, the plugin's archives with krew's manifest.
#
#   images/release.sh --dry-run     makes and checks everything that needs no registry, and prints the rest
#   images/release.sh               publishes; .github/workflows/release.yml calls it once each image is pushed
#
# What it takes:
#   out/release/digests/IMAGE:TAG   digests of the pushed images, one a line, one for each architecture. In a dry run
#                                   the indexes of `make images` stand in for them.
#   out/release/plugins/OS_ARCH     kubectl-hawkeye for each platform
# Needs jq, cargo and helm; to publish also docker buildx, cosign and gh, logged in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry_run=false
case ${1:-} in
    '') ;;
    --dry-run) dry_run=true ;;
    *) echo "usage: images/release.sh [--dry-run]" >&2; exit 2 ;;
esac
. e2e/env.sh
registry=${REGISTRY:-ghcr.io/bytebot-ai}
out=out/release
say() { printf '%s\n' "$*"; }
fail() { printf 'release: %s\n' "$*" >&2; exit 1; }
# What changes something outside this folder: done, or in a dry run said.
publish() { if $dry_run; then say "  would run: $*"; else "$@"; fi; }

# ---- one version everywhere ------------------------------------------------------------------------------------------
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
for chart in charts/hawkeye charts/hawkeye-crds; do
    for field in version appVersion; do
        found=$(sed -n "s/^$field: //p" "$chart/Chart.yaml")
        [[ $found == "$version" ]] || fail "$chart has $field $found, Cargo.toml has $version"
    done
done
tag=v$version
if ! $dry_run; then
    [[ ${GITHUB_REF_NAME:-} == "$tag" ]] || fail "the tag is '${GITHUB_REF_NAME:-}', Cargo.toml says $tag"
    grep -q "^## \[$version\]" CHANGELOG.md || fail "CHANGELOG.md has no section [$version]"
fi
say "release $tag to $registry$($dry_run && echo ' (dry run)')"
mkdir -p "$out"

# ---- images ----------------------------------------------------------------------------------------------------------
# IMAGE:TAG, the package whose dependencies are in it, its archive's name.
images=(
    "hawkeye-operator:$version hawkeye-operator operator"
    "hawkeye-inference:$version-cpu hawkeye-inference inference-cpu"
    "hawkeye-inference:$version-cuda hawkeye-inference inference-cuda"
)
blob() { tar -xOf "$1" "blobs/sha256/${2#sha256:}"; } # blob LAYOUT DIGEST
digests() {                                           # digests IMAGE:TAG ARCHIVE
    local layout=$HAWKEYE_CACHE/images/index/$2.tar
    if ! $dry_run; then
        sort "$out/digests/$1"
    elif [[ -f $layout ]]; then
        blob "$layout" "$(tar -xOf "$layout" index.json | jq -r '.manifests[0].digest')" |
            jq -r '.manifests[] | select(.platform.architecture | IN("amd64", "arm64")) | .digest'
    fi
}
# CycloneDX: the crates that are compiled in, by name, version and licence, and the Python packages that libtorch is from.
sbom() { # sbom PACKAGE VARIANT
    {
        cargo tree --locked --package "$1" --edges normal --prefix none --format '{p}|{l}' |
            sed -nE 's/ \(\*\)$//; s/^([^ ]+) v([^ |]+)[^|]*\|(.*)$/cargo|\1|\2|\3/p'
        case $2 in
            *-cpu) sed -nE 's/^(torch|nvidia-cuda-runtime|nvidia-cuda-cupti)==([^ ;\\]+).*/pypi|\1|\2|/p' inference/export/requirements.lock ;;
            *-cuda) sed -nE 's/^(torch|nvidia-[a-z0-9-]+)==([^ ;\\]+).*/pypi|\1|\2|/p' inference/export/requirements.lock ;;
        esac
    } | sort -u | jq --raw-input --slurp --arg name "$1" --arg version "$version" '
        {bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
         metadata: {component: {type: "application", name: $name, version: $version}},
         components: [split("\n")[] | select(. != "") | split("|") | {
             type: "library", name: .[1], version: .[2], purl: "pkg:\(.[0])/\(.[1])@\(.[2])"
         } + if .[3] == "" then {} else {licenses: [{expression: .[3] | gsub("/"; " OR ")}]} end]}'
}
for line in "${images[@]}"; do
    read -r image package archive <<<"$line"
    name=${image%:*}
    mapfile -t found < <(digests "$image" "$archive")
    if $dry_run && ((${#found[@]} == 0)) && [[ $archive == inference-cuda ]]; then
        say "image $image: not built here; its release is made like the others'"
        continue
    fi
    ((${#found[@]} == 2)) || fail "image $image: ${#found[@]} digests instead of one for each of amd64 and arm64 (make images)"
    say "image $image: ${found[*]}"
    sbom "$package" "$archive" >"$out/$archive.cdx.json"
    components=$(jq '.components | length' "$out/$archive.cdx.json")
    ((components > 50)) || fail "the SBOM of $image has only $components components"
    say "  SBOM: $out/$archive.cdx.json, $components components"
    publish docker buildx imagetools create --tag "$registry/$image" "${found[@]/#/$registry/$name@}"
    index="DIGEST-OF-THE-INDEX"
    if ! $dry_run; then
        index=$(docker buildx imagetools inspect "$registry/$image" --format '{{json .Manifest}}' | jq -r .digest)
    fi
    publish cosign sign --yes --recursive "$registry/$name@$index"
    publish cosign attest --yes --type cyclonedx --predicate "$out/$archive.cdx.json" "$registry/$name@$index"
done

# ---- charts ----------------------------------------------------------------------------------------------------------
rm -f "$out"/*.tgz
for chart in hawkeye-crds hawkeye; do
    helm package "charts/$chart" --destination "$out" >/dev/null
    package=$out/$chart-$version.tgz
    helm template release "$package" >/dev/null
    say "chart $package"
    if $dry_run; then
        publish helm push "$package" "oci://$registry/charts"
        publish cosign sign --yes "$registry/charts/$chart@DIGEST-OF-THE-CHART"
    else
        digest=$(helm push "$package" "oci://$registry/charts" 2>&1 | tee /dev/stderr | sed -n 's/^Digest: //p')
        [[ $digest == sha256:* ]] || fail "helm push named no digest of $chart"
        cosign sign --yes "$registry/charts/$chart@$digest"
    fi
done

# ---- the plugin, krew's manifest, the release's page -----------------------------------------------------------------
rm -rf out/krew
plugins=0
for binary in "$out"/plugins/*_*; do
    [[ -f $binary ]] || continue
    platform=$(basename "$binary")
    manifests/krew/package.sh "$binary" "${platform%_*}" "${platform#*_}" >/dev/null
    plugins=$((plugins + 1))
done
((plugins > 0)) || fail "no plugin in $out/plugins (hawkeye-e2e images plugin --platform …, copied there as linux_amd64 and so on)"
cp out/krew/* manifests/install.yaml "$out/"
(cd "$out" && sha256sum ./*.tar.gz ./*.tgz ./*.cdx.json install.yaml hawkeye.yaml >SHA256SUMS)
say "plugin: $plugins platforms; krew: $out/hawkeye.yaml"
if ! $dry_run && ((plugins != 4)); then fail "krew's manifest promises 4 platforms"; fi
publish cosign sign-blob --yes --bundle "$out/SHA256SUMS.sigstore.json" "$out/SHA256SUMS"
publish gh release create "$tag" --verify-tag --title "Hawkeye $version" --notes-file CHANGELOG.md "$out"/*.tar.gz "$out"/*.tgz "$out"/*.cdx.json \
    "$out/install.yaml" "$out/hawkeye.yaml" "$out"/SHA256SUMS*
say "done: $out"
