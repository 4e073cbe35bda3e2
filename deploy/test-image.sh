#!/usr/bin/env bash
# Builds the image and tries what docs/containers.md describes, with whatever of docker, podman or buildah works here:
#
#   deploy/test-image.sh [SCENES]        default: examples/input_scenes.json
#
# ENGINE=docker|podman|buildah chooses. BASE_IMAGE, and options in BUILD_FLAGS, go to the build. IMAGE=NAME takes an
# image that is there. OUT=FOLDER keeps the pictures and clips. The models are small: it needs no GPU, but uses one.
set -euo pipefail
scenes=$(realpath "${1:-$(dirname "$0")/../examples/input_scenes.json}")
[ -z "${OUT:-}" ] || { mkdir -p "$OUT" && OUT=$(realpath "$OUT"); }
cd "$(dirname "$0")/.."
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' client/cloudvid_schema/__init__.py)
image=${IMAGE:-cloudvid:$version}
work=$(mktemp -d)

say() { printf '\n== %s (at %d s)\n' "$*" "$SECONDS"; }
fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
expect() { # CODE COMMAND...
    local code=0 wanted=$1
    shift
    "$@" || code=$?
    [ "$code" = "$wanted" ] || fail "exit code $code instead of $wanted: $*"
}
until_true() { # SECONDS COMMAND...
    local end=$((SECONDS + $1)) name
    shift
    until "$@" > "$work/last" 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            for name in "${!container[@]}"; do log "$name" | tail -n 30; done
            cat "$work/last"
            fail "did not come true in its time: $*"
        fi
        sleep 1
    done
}
free_ports() { # the first of ten in a row that are free on this machine
    local first port
    for first in $(shuf -i 2100-2900); do
        for port in $(seq "$first"0 "$first"9); do
            if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then continue 2; fi
        done
        echo "$first"0
        return
    done
}
# shellcheck source=deploy/engine.sh
. deploy/engine.sh
clean_up() {
    local name
    for name in "${!container[@]}"; do drop "$name" || true; done
    [ -z "${compose:-}" ] || $compose --profile cpu down -v > /dev/null 2>&1 || true
    [ -z "${spare:-}" ] || buildah rm "$spare" > /dev/null
    rm -rf "$work"
}
trap clean_up EXIT

z=
[ "$ENGINE" = docker ] || z=:z
if command -v nvidia-smi > /dev/null; then everywhere+=(--gpus all); fi
mkdir -p "$work/in" "$work/none" "$work/models" "$work/run" "${OUT:=$work/out}"
[ ! -e "$OUT/scenes" ] || fail "$OUT/scenes is there already"
cp "$scenes" "$work/in/scenes.json"
head -c 32 /dev/urandom | base64 | tr -d '\n=' > "$work/tokens"
chmod 644 "$work/tokens" # for the image's user; the folder is this one's alone
if [ "$(id -u)" = 0 ]; then # the image's own user has to read and write there
    chmod 1777 "$work/models" "$work/run" "$OUT"
else
    everywhere+=(--user "$(id -u):$(id -g)")
    [ "$ENGINE" = docker ] || everywhere+=(--userns keep-id)
fi
in=(-v "$work/in:/app/input_data$z") results=(-v "$OUT:/app/output_data$z")

if [ -z "${IMAGE:-}" ]; then
    say "build with $ENGINE"
    began=$SECONDS
    build "$image" -t cloudvid
    echo "built in $((SECONDS - began)) s"
fi
[ "$ENGINE" != buildah ] || spare=$(buildah from "$image")

say 'what is in it'
size
# shellcheck disable=SC2016
shell -- 'du -sm /opt/venv /app | sort -rn
    [ "$(id -u)" != 0 ] || exit 1
    for tool in cc gcc c++ g++ cpp clang tcc rustc go make ld as nvcc; do
        if command -v "$tool"; then exit 1; fi
    done
    touch /app/client 2> /dev/null && exit 1
    echo "user $(id -u), no compiler, the program is not its to change"' || fail 'root, or a compiler'

say 'the whole job'
expect 2 run -v "$work/none:/app/input_data$z" "${results[@]}" --
began=$SECONDS
expect 0 run -e PROFILE=demo "${in[@]}" "${results[@]}" --
echo "the whole job in $((SECONDS - began)) s"
check() { # every picture and clip is there, is what the manifest says, can be decoded, and is the user's
    # shellcheck disable=SC2016
    shell "${in[@]}" "${results[@]}" -- 'set -e
        cd /app/output_data/scenes
        cloudvid plan /app/input_data/scenes.json --output-dir . --server http://127.0.0.1:9 > /tmp/plan 2>&1
        grep "^0 of " /tmp/plan || { cat /tmp/plan; exit 1; }
        python -c "if True:
            import json
            scenes = json.load(open(\"/app/input_data/scenes.json\"))
            for scene in scenes[\"scenes\"] if isinstance(scenes, dict) else scenes:
                for end in (\"base_image.png\", \"video.mp4\"):
                    print(scene[\"id\"] + \"_\" + end)" > /tmp/expected
        ffmpeg=$(python -c "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())")
        while read -r file; do
            cloudvid inspect "$file" > /dev/null
            "$ffmpeg" -nostdin -v error -xerror -i "$file" -f null -
        done < /tmp/expected
        [ -z "$(find . ! -user "$(id -u)")" ]
        echo "$(wc -l < /tmp/expected) files are whole, and belong to user $(id -u)"' || fail 'an output'
}
check

say 'the whole job, stopped'
sums() { (cd "$OUT/scenes" && sha256sum ./*.png ./*.mp4); }
before=$(sums)
begin job -e PROFILE=demo "${in[@]}" "${results[@]}" -- --force
until_true 300 inside job cloudvid-container health
has_made() { log job | grep -q "$1"; }
until_true 300 has_made _base_image.png
end job 130
expect 0 run -e PROFILE=demo "${in[@]}" "${results[@]}" --
check
[ "$(sums)" = "$before" ] || fail 'the files made again are others'

say 'serve t2i, with a proxy before it'
port=$(free_ports) proxy=
served=(-v "$work/run:/run/cloudvid$z")
begin server -e PROFILE=tiny "${served[@]}" -- serve t2i --port "$port"
until_true 300 inside server cloudvid-container health
inside server cloudvid wait --stage t2i
inside server cloudvid ps --stage t2i
ask=(--width 128 --height 64 --num-inference-steps 2 --seed 7)
inside server cloudvid image 'a lighthouse' "${ask[@]}" -o /tmp/direct.png
proxy="127.0.0.1:$((port + 6))"
# shellcheck disable=SC2046
begin proxy $(network_of server) "${served[@]}" -v "$work/tokens:/run/secrets/tokens:ro${z/:/,}" -- \
    proxy --tokens /run/secrets/tokens --listen "$proxy" --t2i "127.0.0.1:$port=/run/cloudvid/key_file.json"
# shellcheck disable=SC2016
through='CLOUDVID_TOKEN=$(cat /run/secrets/tokens) cloudvid image "a lighthouse" "$@" -o /tmp/proxied.png'
until_true 60 inside proxy sh -c "$through" sh "${ask[@]}" --server "http://$proxy"
[ "$(inside server sha256sum < /dev/null /tmp/direct.png | cut -c 1-64)" = \
    "$(inside proxy sha256sum /tmp/proxied.png | cut -c 1-64)" ] || fail 'another picture through the proxy'
if inside proxy cloudvid image 'a lighthouse' "${ask[@]}" -o /tmp/x.png --server "http://$proxy" --token wrong; then
    fail 'the proxy takes any token'
fi
end proxy 0
end server 130

say 'weights: into a volume, and in the image'
cached=(-e PROFILE=tiny -v "$work/models:/app/models$z")
expect 0 run "${cached[@]}" -- weights
made=$(find "$work/models" -name model_index.json | wc -l)
[ "$made" = 2 ] || fail "$made models in the volume"
build cloudvid:baked --build-arg BAKE_WEIGHTS=tiny
(
    image=cloudvid:baked
    if [ "$ENGINE" = buildah ]; then spare=$(buildah from "$image"); fi
    # shellcheck disable=SC2016
    shell -- 'test "$(ls /app/models/tiny-*/cloudvid-tiny-*/model_index.json | wc -l)" = 2'
    if [ "$ENGINE" = buildah ]; then buildah rm "$spare" > /dev/null; fi
) || fail 'no models in the image'
echo 'both models, in the volume and in the image'

say 'compose'
case $ENGINE in docker) tools=('docker compose' docker-compose) ;; podman) tools=('podman compose' podman-compose) ;; *) tools=() ;; esac
for compose in "${tools[@]}" ''; do
    if [ -n "$compose" ] && $compose version > /dev/null 2>&1; then break; fi
done
if [ -z "$compose" ]; then
    echo "not tried: no compose for $ENGINE here"
else
    CLOUDVID_PORT=$(free_ports)
    export CLOUDVID_PORT PROFILE=tiny CLOUDVID_TOKENS_FILE=$work/tokens COMPOSE_PROJECT_NAME=cloudvid-test
    $compose --profile cpu up -d
    is_ready() { $compose exec -T proxy cloudvid-container health "http://127.0.0.1:8444/ready?stage=$1"; }
    until_true 300 is_ready t2i
    until_true 300 is_ready i2v
    $compose exec -T t2i cloudvid scale t2i 2
    $compose restart proxy
    until_true 60 is_ready i2v
    # shellcheck disable=SC2016
    expect 0 shell --network host -e CLOUDVID_PORT "${in[@]}" "${results[@]}" -v "$work/tokens:/run/secrets/tokens:ro${z/:/,}" -- '
        cd /app/output_data
        CLOUDVID_TOKEN=$(cat /run/secrets/tokens) cloudvid run ../input_data/scenes.json --output-dir compose \
            --server "http://127.0.0.1:$CLOUDVID_PORT"'
    made=$(find "$OUT/compose" -name '*.png' -o -name '*.mp4' | wc -l)
    [ "$made" = "$(sums | wc -l)" ] || fail "$made files through the proxy"
    $compose --profile cpu down -v
fi

say 'all of it works'
