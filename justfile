# Everything that CI runs is a recipe here. Without just: npx --yes rust-just <recipe>

# without what a shell would run: a tag may have any name
version := `git describe --tags --always --dirty 2>/dev/null | tr -cd 'A-Za-z0-9.+_-' | grep . || echo unknown`
arch    := `go env GOARCH`
# server and webhook, as the overlays name them
images  := `awk '/newName:/ { name = $2 } /newTag:/ { printf "%s:%s ", name, $2 }' kustomize/images/kustomization.yaml`

# list the recipes
_default:
    @just --list --unsorted

# show it at work, without a cluster: a VM's pod is injected, wired and served
demo *ARGS:
    go run ./tools/demo {{ ARGS }}

# run all tests
test *ARGS:
    go test ./... {{ ARGS }}

# format the code
fmt:
    go fmt ./...

# check format, vet, staticcheck and the tidiness of go.mod, in each module
lint:
    @test -z "$(gofmt -l .)" || { echo "not gofmt'ed; run: just fmt"; gofmt -l .; exit 1; }
    go vet ./...
    go tool staticcheck ./...
    go mod tidy -diff
    cd tools/e2e && go vet ./... && go tool -modfile=../../go.mod staticcheck ./... && go mod tidy -diff
    cd tools/e2e/conditions && go vet ./... && go tool -modfile=../../../go.mod staticcheck ./... && go mod tidy -diff
    cd tools/generate/kpt && go vet ./... && go tool -modfile=../../../go.mod staticcheck ./... && go mod tidy -diff
    cd tools/release && go vet ./... && go tool -modfile=../../go.mod staticcheck ./... && go mod tidy -diff
    @test -z "$(go list -deps -f '{{{{ if not .Standard }}{{{{ .ImportPath }}{{{{ end }}' ./server/... | grep -v ^github.com/example/kubevirt-imds/)" || { echo "server/ is standard library only"; exit 1; }

# look for known vulnerabilities (asks the Go vulnerability database)
vulnerabilities:
    go tool govulncheck ./...

# build the three static binaries into bin/linux-<architecture>; imds-server without HTTP/2, which it does not speak
build goarch=arch name=version:
    CGO_ENABLED=0 GOOS=linux GOARCH={{ goarch }} go build -trimpath -buildvcs=false -buildmode=exe -tags nethttpomithttp2 -ldflags {{ quote('-s -w -X main.version=' + name) }} -o bin/linux-{{ goarch }}/imds-server  ./server
    CGO_ENABLED=0 GOOS=linux GOARCH={{ goarch }} go build -trimpath -buildvcs=false -buildmode=exe -ldflags {{ quote('-s -w -X main.version=' + name) }} -o bin/linux-{{ goarch }}/imds-init    ./netsetup
    CGO_ENABLED=0 GOOS=linux GOARCH={{ goarch }} go build -trimpath -buildvcs=false -buildmode=exe -ldflags {{ quote('-s -w -X main.version=' + name) }} -o bin/linux-{{ goarch }}/imds-webhook ./injector

# render the webhook configuration, the pod's patches and the golden manifests; --check: show the difference only
generate *ARGS:
    go run ./tools/generate {{ if ARGS == "--check" { "-check" } else { ARGS } }}

# make CA, certificate and key for overlays/manual (--help: names, lifetime, --force)
certs *ARGS:
    go run ./tools/certs {{ ARGS }}

# build the two images, by the names that the overlays have for them, with docker, podman or buildah
image goarch=arch: (build goarch)
    #!/usr/bin/env bash
    set -euo pipefail
    (cd tools/release && go run . licenses)
    export SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)"
    targets=(server webhook)
    for image in {{ images }}; do
        args=(--platform "linux/{{ goarch }}" --target "${targets[0]}" --build-arg VERSION={{ quote(version) }} --build-arg REVISION="$(git rev-parse HEAD)" -t "$image" -f Containerfile .)
        targets=("${targets[@]:1}")
        if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
            docker buildx build --load "${args[@]}"
        elif command -v podman >/dev/null; then
            podman build --network none --timestamp "$SOURCE_DATE_EPOCH" "${args[@]}"
        elif command -v buildah >/dev/null; then
            buildah build --network none --timestamp "$SOURCE_DATE_EPOCH" "${args[@]}"
        else
            echo "no docker, podman or buildah here; on Debian: apt-get install buildah" >&2
            exit 1
        fi
    done

# load the two images into a kind cluster
kind-load cluster="kind": image
    kind load docker-image --name {{ cluster }} {{ images }}

# make all files of a release in dist/VERSION, of the commit alone and the same at each run: images, manifests, SBOMs, ... (buildah)
release VERSION:
    cd tools/release && go run . make {{ quote(VERSION) }}

# check all of it on a real Kubernetes, built from Go modules (root; once about 7 minutes); or: e2e guests, e2e kind
e2e what='check' *ARGS:
    @case {{ what }} in check | guests | kind) ;; *) echo "just e2e {{ what }}: use check, guests or kind, and then options" >&2; exit 2 ;; esac
    cd tools/e2e/conditions && go vet ./... && go test -count=1 ./...
    cd tools/e2e && go vet ./... && go test ./...
    cd tools/e2e && {{ if what == "kind" { "./kind.sh" } else if what == "guests" { "go test -count=1 -v -timeout 30m ./guests -guests" } else { "go test -count=1 -v -timeout 30m ./checks -cluster" } }} {{ ARGS }}

# measure the programs, each in turn with a reference (options: those of tools/bench), and then what 1 to 300 pods cost on a node
bench *ARGS:
    go run ./tools/bench {{ ARGS }}
    {{ if ARGS =~ '(^| )--?h(elp)?( |$)' { "" } else { "go test -count=1 -v -run TestCost ./netsetup -cost-of 1,10,100,300" } }}

# load, rotations, killed sidecars and accidents for long, and then a flood of the webhook for a minute
soak time='20m':
    IMDS_SOAK={{ time }} go test -count=1 -v -timeout 0 -run TestSoak ./netsetup
    IMDS_FLOOD=60s go test -count=1 -v -run TestFlood ./injector

# fuzz each target for a while
fuzz time='30s':
    @go list -f '{{{{ .Dir }}' ./... | while read -r dir; do \
        grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go 2>/dev/null | cut -c6- | while read -r target; do \
            echo "$dir $target"; (cd "$dir" && go test -run '^$' -fuzz "^$target\$" -fuzztime {{ time }} .) || exit 1; \
        done || exit 1; \
    done
