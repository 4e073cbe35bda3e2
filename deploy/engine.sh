# What docker, podman and buildah can do alike; read by test-image.sh, whose $image, $work and functions it uses.
#
#   build TAG OPTION...            size
#   run OPTION... -- ARGUMENT...   the entry point, to its end       shell OPTION... -- SCRIPT
#   begin NAME OPTION... -- ARGUMENT...                              inside NAME COMMAND...
#   end NAME CODE                  SIGTERM: it ends with that code   drop NAME    log NAME    network_of NAME
# shellcheck shell=bash disable=SC2154

declare -A container process options # of what runs, by name
everywhere=() # options of every container, but for buildah's

split() { # A... -- B...: A into `flags`, B into `words`
    flags=()
    while [ "$1" != -- ]; do
        flags+=("$1")
        shift
    done
    shift
    words=("$@")
}

if [ -z "${ENGINE:-}" ]; then
    for ENGINE in docker podman buildah ''; do
        [ -n "$ENGINE" ] || fail 'neither docker nor podman nor buildah works here'
        if "$ENGINE" info > /dev/null 2>&1; then break; fi # a client without its daemon is no engine
    done
fi
if [ "$ENGINE" = buildah ]; then
    # It builds and runs, but keeps no container running: processes are this machine's, and so is the network.
    chroot() { buildah run --isolation chroot "$@"; }
    run() {
        split "$@"
        chroot "${flags[@]}" "$spare" -- /usr/bin/tini -s -- cloudvid-container "${words[@]}"
    }
    shell() {
        split "$@"
        chroot "${flags[@]}" "$spare" -- sh -c "${words[0]}"
    }
    begin() {
        local name=$1
        split "${@:2}"
        container[$name]=$(buildah from "$image")
        options[$name]=${flags[*]}
        # shellcheck disable=SC2016
        chroot "${flags[@]}" "${container[$name]}" -- sh -c 'echo $$ > /tmp/pid; exec "$@"' sh \
            /usr/bin/tini -s -- cloudvid-container "${words[@]}" > "$work/$name.log" 2>&1 &
        process[$name]=$!
        until_true 30 inside "$name" test -s /tmp/pid
    }
    inside() { # NAME COMMAND...
        # shellcheck disable=SC2086
        chroot ${options[$1]} "${container[$1]}" -- "${@:2}"
    }
    family() { # it and all below it
        local child
        echo "$1"
        for child in $(pgrep -P "$1"); do family "$child"; done
    }
    end() { # NAME CODE: on SIGTERM it ends with that code, and leaves no process
        local first all each began=$SECONDS
        first=$(inside "$1" cat /tmp/pid)
        all=$(family "$first")
        kill -TERM "$first"
        expect "$2" wait "${process[$1]}"
        for each in $all; do [ ! -e "/proc/$each" ] || fail "process $each is left of $1"; done
        echo "$1: $(wc -w <<< "$all") processes ended on SIGTERM, in $((SECONDS - began)) s"
        drop "$1"
    }
    drop() {
        # shellcheck disable=SC2046
        kill -KILL $(family "${process[$1]}") 2> /dev/null || true # where something failed before its end
        buildah rm "${container[$1]}" > /dev/null
        unset "container[$1]"
    }
    log() { cat "$work/$1.log"; }
    network_of() { :; }
    size() { buildah images --format '{{.Size}}' "$image" | sort -u; }
else
    run() {
        split "$@"
        "$ENGINE" run --rm "${everywhere[@]}" "${flags[@]}" "$image" "${words[@]}"
    }
    shell() {
        split "$@"
        "$ENGINE" run --rm "${everywhere[@]}" "${flags[@]}" --entrypoint sh "$image" -c "${words[0]}"
    }
    begin() {
        split "${@:2}"
        container[$1]=$("$ENGINE" run -d "${everywhere[@]}" "${flags[@]}" "$image" "${words[@]}")
    }
    inside() { "$ENGINE" exec "${container[$1]}" "${@:2}"; }
    end() { # 137: it had to be killed
        local began=$SECONDS
        "$ENGINE" stop -t 60 "${container[$1]}" > /dev/null
        expect 0 test "$("$ENGINE" inspect -f '{{.State.ExitCode}}' "${container[$1]}")" = "$2"
        echo "$1: ended on SIGTERM, in $((SECONDS - began)) s"
        drop "$1"
    }
    drop() {
        "$ENGINE" rm -f "${container[$1]}" > /dev/null
        unset "container[$1]"
    }
    log() { "$ENGINE" logs "${container[$1]}" 2>&1; }
    network_of() { echo "--network container:${container[$1]}"; }
    size() {
        "$ENGINE" history --format '{{.Size}} {{.CreatedBy}}' "$image" | grep -v '^0 *B ' | cut -c 1-100
        "$ENGINE" image inspect -f '{{.Size}} bytes' "$image"
    }
fi
build() { # TAG OPTION...
    local given=(-t "$1")
    [ -z "${BASE_IMAGE:-}" ] || given+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
    [ "$ENGINE" = docker ] || given+=(--format docker) # OCI's has no health check
    [ "$ENGINE" != buildah ] || given+=(--layers --isolation chroot)
    # shellcheck disable=SC2086
    DOCKER_BUILDKIT=1 "$ENGINE" build "${given[@]}" ${BUILD_FLAGS:-} "${@:2}" . > "$work/build.log" 2>&1 ||
        fail "the build: $(tail -n 40 "$work/build.log")"
}
