#!/bin/bash
# `make demo`: PostgreSQL in a container whose data is an ovs volume; a snapshot under load; ovsd killed with -9 in the
# middle; a clone of the snapshot in a second container; both databases checked. Everything on a private root below
# /var/tmp and removed at the end.
#
#   packaging/demo.sh [--keep]     --keep leaves everything running and says how to go on by hand
#   packaging/demo.sh --clean      stops and removes what a --keep (or a demo killed with -9) left
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${OVS_BIN:-${CARGO_TARGET_DIR:-$PWD/target}/release}
cache=${OVS_CACHE:-/var/cache/ovs-build}
image=ovs-demo-postgres
scale=${OVS_DEMO_SCALE:-10}     # pgbench: 10 = 1 million accounts, 150 MB
seconds=${OVS_DEMO_SECONDS:-20} # of load

# --- looks

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi
steps=()
now() { date +%s%3N; }
seconds_since() { awk -v a="$1" -v b="$(now)" 'BEGIN{printf "%.1f", (b-a)/1000}'; }
started=$(now)
step() { # what is about to happen; ends the one before
    done_step
    step_name=$1
    step_started=$(now)
    printf '%s●%s %s\n' "$bold" "$plain" "$1"
}
done_step() {
    [ -n "${step_name:-}" ] || return 0
    local took
    took=$(seconds_since "$step_started")
    steps+=("$(printf '%7s s  %s' "$took" "$step_name")")
    printf '  %s✔ %s s%s\n' "$green" "$took" "$plain"
    step_name=
}
say() { printf '  %s%s%s\n' "$dim" "$*" "$plain"; }
show() { # a command, shown and run; its output indented
    printf '  %s$ %s%s\n' "$dim" "$*" "$plain"
    "$@" 2>&1 | sed 's/^/    /'
}
fail() {
    printf '%s✘ %s%s\n' "$red" "$*" "$plain" >&2
    exit 1
}

# --- what is started is written down as it starts (pid and start time), so that --clean finds it too

start_time() { awk '{sub(/.*\) /, ""); print $20}' "/proc/$1/stat" 2>/dev/null; }
remember() { echo "$1 $2 $(start_time "$2")" >>"$root/pids"; }
stop_program() { # name [signal]: by pid, and only if that pid is still the process that was started
    local name pid begun
    [ -f "$root/pids" ] || return 0
    while read -r name pid begun; do
        [ "$name" = "$1" ] && [ "$(start_time "$pid")" = "$begun" ] || continue
        kill "-${2:-TERM}" "$pid" 2>/dev/null || true
        for _ in $(seq 300); do [ "$(start_time "$pid")" = "$begun" ] && [ "$(awk '{sub(/.*\) /, ""); print $1}' "/proc/$pid/stat" 2>/dev/null)" != Z ] || break; sleep 0.1; done
        [ "$(start_time "$pid")" != "$begun" ] || kill -KILL "$pid" 2>/dev/null || true
    done < <(tac "$root/pids")
}

clean_up() { # everything of one demo, whatever state it is in
    root=$1
    [ -f "$root/docker-host" ] && DOCKER_HOST=$(cat "$root/docker-host") && export DOCKER_HOST
    local tag=${root##*.} kind id
    if docker version >/dev/null 2>&1; then
        for id in $(docker ps -aq --filter "label=ovs-demo=$tag"); do docker rm -f -v "$id" >/dev/null 2>&1 || true; done
        for id in demo-db demo-copy; do
            [ -f "$root/volume-$id" ] && timeout 60 docker volume rm "$id" >/dev/null 2>&1 || true
        done
        [ -f "$root/image" ] && docker rmi "$image" >/dev/null 2>&1 || true
    fi
    touch "$root/stopping"
    for kind in keeper ovsd-docker ovsd-edge ovsd dockerd; do stop_program "$kind"; done
    # What a killed demo may have left: mounts and loop devices below the root, and nothing else.
    awk -v r="$root/" 'index($5, r)==1{print $5}' /proc/self/mountinfo | tac | while read -r id; do umount -l "$id" 2>/dev/null || true; done
    losetup --list --noheadings --output NAME,BACK-FILE | awk -v r="$root/" 'index($2, r)==1{print $1}' |
        while read -r id; do losetup -d "$id" 2>/dev/null || true; done
    [ -f "$root/plugin-socket" ] && rm -f "$(cat "$root/plugin-socket")"
    rm -rf --one-file-system "$root"
}

if [ "${1:-}" = --clean ]; then
    for old in /var/tmp/ovs-demo.*; do
        [ -d "$old" ] || continue
        echo "removing $old"
        clean_up "$old"
    done
    exit 0
fi
keep=${1:-}
[ -z "$keep" ] || [ "$keep" = --keep ] || fail "usage: demo.sh [--keep | --clean]"
[ "$(id -u)" = 0 ] || fail "the demo mounts, and runs Docker: run it as root"
for program in ovsd ovsd-edge ovsd-docker ovs; do
    [ -x "$bin/$program" ] || fail "$bin/$program is not there: make build"
done

# Not /tmp: that may be a small tmpfs, which has no O_DIRECT. Short: a unix socket's path ends at 107 characters.
root=$(mktemp -d /var/tmp/ovs-demo.XXXXXX)
chmod 0755 "$root"
tag=${root##*.}
export OVS_ROOT=$root/ovs
mkdir -p "$OVS_ROOT" "$root/log"
ovs() { "$bin/ovs" "$@"; }

finish() {
    local code=$?
    trap - EXIT INT TERM
    set +e
    if [ $code -ne 0 ]; then
        printf '%s✘ stopped in: %s%s\n' "$red" "${step_name:-start}" "$plain"
        for id in db copy; do
            docker inspect "$id-$tag" >/dev/null 2>&1 || continue
            printf '%s── container %s, last lines%s\n' "$dim" "$id" "$plain"
            docker logs --tail 15 "$id-$tag" 2>&1
        done
        for log in "$root"/log/*.log; do
            printf '%s── %s, last lines%s\n' "$dim" "$(basename "$log")" "$plain"
            tail -n 15 "$log"
        done
    fi
    if [ "$keep" = --keep ] && [ $code -eq 0 ]; then
        exit 0
    fi
    step_name=
    printf '%s●%s cleaning up %s\n' "$bold" "$plain" "$root"
    clean_up "$root"
    [ $code -ne 0 ] || printf '%s✔ done, nothing is left behind%s\n' "$green" "$plain"
    exit $code
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

wait_for() { # what seconds command...
    local what=$1 end=$(($(now) + $2 * 1000))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(now)" -lt "$end" ] || fail "$what: not after all this time"
        sleep 0.1
    done
}

# --- Docker

if docker version >/dev/null 2>&1; then
    step "Docker: the one that runs here"
    say "$(docker version --format 'server {{.Server.Version}}')"
else
    step "Docker: starting a private dockerd"
    export DOCKER_HOST=unix://$root/docker.sock
    echo "$DOCKER_HOST" >"$root/docker-host"
    # No bridge and no firewall rules: the containers need no network, and the host's stays as it is.
    dockerd --data-root "$root/docker" --exec-root "$root/docker-run" --host "$DOCKER_HOST" --pidfile "$root/docker.pid" \
        --bridge=none --iptables=false --ip-forward=false --ip-masq=false >"$root/log/dockerd.log" 2>&1 </dev/null &
    remember dockerd $!
    wait_for dockerd 60 docker version
    say "DOCKER_HOST=$DOCKER_HOST"
fi

# --- the three programs

start_ovsd() {
    "$bin/ovsd" >>"$root/log/ovsd.log" 2>&1 </dev/null &
    remember ovsd $!
    echo $! >"$root/ovsd.pid"
    wait $! 2>>"$root/log/keeper.log" # the shell's own word on how it ended
}
keeper() { # starts ovsd again when it dies, as its systemd unit does (Restart=always)
    trap - EXIT
    until [ -e "$root/stopping" ]; do
        start_ovsd || true
        [ -e "$root/stopping" ] || sleep 0.5
    done
}

step "ovs: starting ovsd, ovsd-edge and ovsd-docker on $OVS_ROOT"
keeper 2>>"$root/log/keeper.log" &
remember keeper $!
wait_for "ovsd answers" 60 ovs status
"$bin/ovsd-edge" >"$root/log/ovsd-edge.log" 2>&1 </dev/null &
remember ovsd-edge $!
wait_for "vPool default mounted" 30 mountpoint -q "$OVS_ROOT/mnt/ovs/default"
# dockerd finds a volume driver by its socket's name, in this directory only.
driver=ovs
[ ! -S /run/docker/plugins/ovs.sock ] || driver=ovs-demo
socket=/run/docker/plugins/$driver.sock
echo "$socket" >"$root/plugin-socket"
mkdir -p -m 0700 /run/docker/plugins
docker_socket=${DOCKER_HOST:-unix:///run/docker.sock}
"$bin/ovsd-docker" --socket "$socket" --docker-socket "${docker_socket#unix://}" >"$root/log/ovsd-docker.log" 2>&1 </dev/null &
remember ovsd-docker $!
wait_for "volume driver" 30 test -S "$socket"
show ovs status

# --- the image

step "image: PostgreSQL 15 from Debian's packages"
if [ ! -f "$cache/postgres-image.tar" ]; then
    say "no image can be pulled here, so it is made: downloading Debian's packages (35 MB, once)"
    mkdir -p "$cache"
    packaging/postgres-image.sh "$cache/postgres-image.tar"
fi
touch "$root/image"
docker import --change 'ENV PATH=/usr/lib/postgresql/15/bin:/usr/bin:/usr/sbin LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data' \
    --change 'USER postgres' --change 'CMD ["bash"]' "$cache/postgres-image.tar" "$image" >/dev/null
say "$(docker images --format '{{.Repository}}: {{.Size}}' "$image" | head -1)"

# The container: makes a database cluster in an empty volume, then is PostgreSQL.
start_postgres='set -e; [ -s $PGDATA/PG_VERSION ] || initdb --auth=trust -D $PGDATA >/dev/null
exec postgres -c listen_addresses= -c shared_buffers=64MB -c max_wal_size=512MB -c checkpoint_timeout=30s -c autovacuum_naptime=5s'
run_postgres() { # container volume
    touch "$root/volume-$2"
    docker run -d --name "$1-$tag" --label "ovs-demo=$tag" --network none --volume-driver="$driver" \
        -v "$2:/var/lib/postgresql" "$image" bash -c "$start_postgres" >/dev/null
    wait_for "PostgreSQL in $1" 120 docker exec "$1-$tag" psql -qAtc 'select 1' postgres
}
in_db() { docker exec "$1-$tag" "${@:2}"; }

step "PostgreSQL in a container: docker run --volume-driver=$driver -v demo-db:/var/lib/postgresql …"
say "the volume is made by this: a thin vDisk, a file system, a mount"
run_postgres db demo-db
in_db db df -h /var/lib/postgresql | sed 's/^/    /'

step "pgbench: making $scale branches, $((scale * 100000)) accounts"
in_db db createdb bench
in_db db pgbench --initialize --quiet --scale="$scale" bench 2>&1 | tail -1 | sed 's/^/    /'
in_db db psql -qc 'create extension amcheck' bench

step "pgbench: 8 clients write for $seconds s; meanwhile a snapshot, and ovsd is killed"
docker exec "db-$tag" pgbench --client=8 --jobs=2 --time="$seconds" --progress=2 --max-tries=1 bench >"$root/log/pgbench.log" 2>&1 &
load=$!
pause=$((seconds / 3))
sleep "$pause"
began=$(now)
ovs snapshot create default/demo-db@under-load >/dev/null
say "after $pause s: snapshot default/demo-db@under-load, in $(($(now) - began)) ms"
sleep "$pause"
old_pid=$(cat "$root/ovsd.pid")
began=$(now)
kill -KILL "$old_pid"
say "after $((2 * pause)) s: kill -9 $old_pid (ovsd)"
new_ovsd() { [ "$(cat "$root/ovsd.pid")" != "$old_pid" ] && ovs status; }
wait_for "ovsd is back" 60 new_ovsd
say "ovsd answers again after $(($(now) - began)) ms, pid $(cat "$root/ovsd.pid"); the container was never told"
wait "$load" || { cat "$root/log/pgbench.log"; fail "pgbench failed"; }
grep -E '^progress' "$root/log/pgbench.log" | sed 's/^/    /'
grep -E '^(number of transactions actually|number of failed|tps)' "$root/log/pgbench.log" | sed 's/^/    /'
grep -q 'number of failed transactions: 0 ' "$root/log/pgbench.log" || fail "transactions failed"

step "a clone of the snapshot in a second container"
docker volume create --driver "$driver" --opt from=demo-db --opt snapshot=under-load demo-copy >/dev/null
touch "$root/volume-demo-copy"
run_postgres copy demo-copy
say "it found its database as after a power cut, and recovered:"
docker logs "copy-$tag" 2>&1 | grep -E 'LOG: .*(not properly|redo|ready to accept)' | sed 's/^/    /' || true
show ovs vdisk list default

step "checks: pg_amcheck and pgbench's balances, in both"
balances='select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
                 (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history), (select count(*) from pgbench_history)'
for container in db copy; do
    in_db "$container" pg_amcheck --heapallindexed --parent-check --jobs=2 bench || fail "pg_amcheck in $container"
    row=$(in_db "$container" psql -qAt -F ' ' -c "$balances" bench)
    read -r accounts branches tellers history transactions <<<"$row"
    [ "$accounts" = "$branches" ] && [ "$branches" = "$tellers" ] && [ "$tellers" = "$history" ] ||
        fail "balances differ in $container: $row"
    say "$container: pg_amcheck clean; $transactions transactions; accounts = branches = tellers = history = $accounts"
    counts+=("$transactions")
done
committed=$(awk '/^number of transactions actually processed/{print $6}' "$root/log/pgbench.log")
[ "${counts[0]}" -ge "${committed%%/*}" ] || fail "pgbench was told $committed commits, the table has ${counts[0]}"
[ "${counts[1]}" -lt "${counts[0]}" ] || fail "the clone is not of an earlier time"
say "every one of the $committed commits that pgbench was told is there"

if [ "$keep" = --keep ]; then
    done_step
    cat <<HELP

${bold}Everything is left running.${plain} To go on by hand:

  export OVS_ROOT=$OVS_ROOT PATH=$bin:\$PATH${DOCKER_HOST:+ DOCKER_HOST=$DOCKER_HOST}
  ovs status
  ovs vdisk list                                   # also: ovs vdisk show default/demo-db
  docker exec -it db-$tag psql bench
  docker volume inspect demo-db
  ovs snapshot create default/demo-db@mine
  docker volume create -d $driver -o from=demo-db -o snapshot=mine another
  ovs vdisk resize default/demo-db --size 20GiB    # the mounted file system grows with it
  kill -9 \$(cat $root/ovsd.pid)                    # it comes back
  logs: $root/log

  make clean-demo                                  # stops and removes all of it
HELP
else
    step "checks: stop the containers, fsck of both file systems"
    for container in db copy; do
        docker stop --time 60 "$container-$tag" >/dev/null
        docker rm "$container-$tag" >/dev/null
    done
    for volume in demo-db demo-copy; do
        file=$OVS_ROOT/mnt/ovs/default/$volume.raw
        e2fsck -fn "$file" >"$root/log/fsck-$volume.log" 2>&1 || { cat "$root/log/fsck-$volume.log"; fail "fsck of $volume"; }
        say "$volume: $(tail -1 "$root/log/fsck-$volume.log")"
    done
    step "removing the volumes"
    for volume in demo-db demo-copy; do
        docker volume rm "$volume" >/dev/null
        rm -f "$root/volume-$volume"
    done
    show ovs trash list
    done_step
fi

printf '\n%sWhat it took%s\n' "$bold" "$plain"
printf '  %s\n' "${steps[@]}"
printf '  %7s s  in all\n\n' "$(seconds_since "$started")"
