# Runs in the guest of test_kernel_nbd.py: Docker volumes on NBD devices of the kernel, and what dies beneath them.
#
# Every wait has an end. The guest is some ten times slower than the machine.

R=/data/ovs
S=/run/docker/plugins/ovs.sock
STEP=boot
mkdir -p $R/etc/ovs $R/log /sums
printf 'buffer:\n  size: 128MiB\n  segment_size: 8MiB\n' >$R/etc/ovs/ovsd.yaml

T() { read -r up _ </proc/uptime; printf '[%s] ' "$up"; }
step() { STEP="$*"; T; echo "STEP $*"; }
fail() {
    T
    echo "FAILED in step '$STEP': $*"
    for log in $R/log/*; do echo "--- $log"; tail -n 60 "$log"; done
    echo "--- mounts, devices"
    grep -E 'nbd|loop|ovs' /proc/mounts
    grep -H . /sys/block/nbd*/backend /sys/block/nbd*/pid 2>/dev/null
    curl -sS --unix-socket $R/run/ovs/edge.sock http://x/v1/devices
    ovs --root $R vdisk list
    dmesg | tail -n 60
    exit 1
}
within() { # seconds, what, command...
    local left=$(($1 * 5)) what=$2
    shift 2
    while ! "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "$what"
        usleep 200000
    done
}
same() { [ "$1" = "$2" ] || fail "$3: '$1' and not '$2'"; }

start() { # program option...
    local program=$1
    shift
    OVS_LOG=${OVS_LOG:-info} "$program" --root $R "$@" >>"$R/log/$program" 2>&1 &
    echo $! >"/tmp/$program.pid"
}
kill9() { kill -9 "$(cat "/tmp/$1.pid")"; wait "$(cat "/tmp/$1.pid")" 2>/dev/null; }
core() { curl -sS -f --max-time 60 --unix-socket $R/run/ovs/ovsd.sock "$@"; }
edge() { curl -sS -f --max-time 60 --unix-socket $R/run/ovs/edge.sock "$@"; }
plugin() { curl -sS --max-time 115 --unix-socket $S -d "$2" "http://x/VolumeDriver.$1"; }
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
start_ovsd() { start ovsd && within 120 "ovsd does not answer" core http://x/v1/status; }
start_edge() { start ovsd-edge && within 60 "ovsd-edge does not answer" edge http://x/v1/devices; }
start_plugin() { start ovsd-docker --docker-socket /nowhere --reconcile-interval 2 "$@" && within 60 "no plugin" plugin List '{}'; }
create() { same "$(plugin Create "{\"Name\":\"$1\",\"Opts\":{\"size\":\"$2\"}}")" '{"Err":""}' "Create $1"; }
mount_volume() { # name ID: the mount point
    plugin Mount "{\"Name\":\"$1\",\"ID\":\"$2\"}" >/tmp/answer
    M=$(field Mountpoint </tmp/answer)
    [ -n "$M" ] || fail "Mount $1: $(cat /tmp/answer)"
}
unmount_volume() { same "$(plugin Unmount "{\"Name\":\"$1\",\"ID\":\"$2\"}")" '{"Err":""}' "Unmount $1"; }
devices() { cat /sys/block/nbd*/backend 2>/dev/null | wc -l; }
no_devices() { [ "$(devices)" = 0 ]; }
lists() { edge http://x/v1/devices | grep -q "$1"; }
carries() { grep -q "^$1 $(dirname "$M") " /proc/mounts; }

# No search: it would go into mounts that hang.
lose_registry() { [ -f $R/var/lib/ovs/registry/CURRENT ] && rm -rf $R/var/lib/ovs/registry || fail "no registry"; }
attached() { core "http://x/v1/attachments?client=edge-device@$(cat /proc/sys/kernel/hostname)" | grep -q uuid; }

# Files with their sums elsewhere, each synced, one after the other: what /sums says is acknowledged.
writer() {
    local i=0
    while [ ! -e /tmp/stop ]; do
        i=$((i + 1))
        dd if=/dev/urandom of=/tmp/piece bs=64k count=3 2>/dev/null
        dd if=/tmp/piece of="$M/file.$i" bs=64k conv=fsync 2>/tmp/writer.error || { echo "file.$i" >/tmp/writer.failed; return 1; }
        (cd /tmp && md5sum piece | sed "s/piece/file.$i/") >>/sums/written
    done
}
written() { wc -l </sums/written; }
goes_on() { [ -e /tmp/writer.failed ] || [ "$(written)" -gt $(($1 + 2)) ]; }
writes_go_on() { # since
    within 90 "writes do not go on" goes_on "$1"
    [ ! -e /tmp/writer.failed ] || fail "an I/O error: $(cat /tmp/writer.failed /tmp/writer.error)"
}
check_written() {
    echo 3 >/proc/sys/vm/drop_caches
    (cd "$M" && md5sum -c /sums/written) >/tmp/check 2>&1 || { tail -n 20 /tmp/check; fail "what was written reads otherwise"; }
}

step start
uname -r
start_ovsd
start_edge
start_plugin
edge http://x/v1/devices
echo

step create and mount
create v1 256MiB
# As udev: looks at a new device the moment it is there, and closes it again.
while [ ! -e /tmp/no-udev ]; do [ -e /sys/block/nbd0/backend ] && head -c 4096 /dev/nbd0 >/dev/null 2>&1; done &
mount_volume v1 a
touch /tmp/no-udev
carries /dev/nbd0 || fail "not on /dev/nbd0: $(grep "$M" /proc/mounts)"
V=$(plugin Get '{"Name":"v1"}' | field vdisk)
same "$(cat /sys/block/nbd0/backend)" "$V" "the device's vDisk"
same "$(cat /sys/block/nbd0/queue/logical_block_size)" 4096 "block size"
same "$(plugin Get '{"Name":"v1"}' | field device)" /dev/nbd0 "inspect"
M1=$M

step "a second mount shares the device"
mount_volume v1 b
same "$M" "$M1" "mount point"
same "$(devices)" 1 "devices"
curl -sS --unix-socket $R/run/ovs/edge.sock -X PUT -d '{"block_size_bytes":4096}' "http://x/v1/devices/$V" | grep -q '"was_there":true' || fail "PUT"
curl -sS --unix-socket $R/run/ovs/edge.sock -X DELETE "http://x/v1/devices/$V"
carries /dev/nbd0 || fail "released under its users"

step "its file cannot be written beside it"
dd if=/dev/zero of="$R/mnt/ovs/default/v1.raw" bs=4k count=1 conv=notrunc 2>/dev/null && fail "two writers"

step "write and fsync"
: >/sums/written
writer &
writes_go_on 0

step "kill -9 ovsd under writes"
kill9 ovsd
sleep 4
before=$(written)
sleep 2
same "$(written)" "$before" "written without ovsd"
start_ovsd
writes_go_on "$before"

step "kill -9 ovsd-edge under writes"
kill9 ovsd-edge
before=$(written)
writes_go_on "$before"
start_edge
within 60 "ovsd-edge does not take the device over" lists "$V"
before=$(written)
writes_go_on "$before"

step "kill -9 ovsd under a device that was taken over"
kill9 ovsd
sleep 1
before=$(written)
start_ovsd
writes_go_on "$before"

step "kill -9 both, ovsd-edge comes first"
kill9 ovsd
kill9 ovsd-edge
before=$(written)
start ovsd-edge
# Longer than the plugin waits for a device to answer: it must not take it for dead because ovsd-edge does not know it yet.
sleep 9
start_ovsd
writes_go_on "$before"
same "$(devices)" 1 "devices"

step "the registry is lost under writes"
kill9 ovsd
before=$(written)
lose_registry
start_ovsd
writes_go_on "$before"
same "$(devices)" 1 "devices"
# The attachment is in the new registry: also for the next ovsd and the next ovsd-edge.
kill9 ovsd
kill9 ovsd-edge
before=$(written)
start_ovsd
start_edge
writes_go_on "$before"

step "kill -9 the plugin under writes"
kill9 ovsd-docker
start_plugin
before=$(written)
writes_go_on "$before"

step "all of it is right"
touch /tmp/stop
within 60 "the writer does not stop" sh -c '! pgrep -f /tmp/piece'
sleep 1
[ ! -e /tmp/writer.failed ] || fail "an I/O error: $(cat /tmp/writer.failed)"
echo "files: $(written)"
check_written

step "it grows while it is mounted"
ovs --root $R vdisk resize default/v1 --size 512MiB >/dev/null || fail "resize"
grown() { [ "$(cat /sys/block/nbd0/size)" = 1048576 ] && [ "$(df -k "$(dirname "$M")" | awk 'END{print $2}')" -gt 400000 ]; }
within 60 "it does not grow" grown
check_written

step "unmount"
unmount_volume v1 a
carries /dev/nbd0 || fail "gone with one of two mounts"
unmount_volume v1 b
within 10 "the device stays" no_devices
within 20 "the attachment stays" sh -c "! curl -sS --unix-socket $R/run/ovs/ovsd.sock http://x/v1/attachments | grep -q edge-device"

step "mounted again, all is there"
mount_volume v1 c
check_written

step "fenced: errors, and the next mount works"
A=$(core "http://x/v1/attachments?client=edge-device@$(cat /proc/sys/kernel/hostname)" | field uuid)
core -X DELETE "http://x/v1/attachments/$A?force=true" || fail "fence"
refused() { ! dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct; }
within 60 "the fenced device still reads" refused
lists "$V" && fail "a fenced device is kept"
mount_volume v1 d
check_written
touch "$M/after" && sync || fail "the next mount does not write"
unmount_volume v1 c
unmount_volume v1 d
within 30 "devices stay" no_devices

step "fenced, and the registry lost before ovsd-edge hears of it"
mount_volume v1 c
kill -STOP "$(cat /tmp/ovsd-edge.pid)"
A=$(core "http://x/v1/attachments?client=edge-device@$(cat /proc/sys/kernel/hostname)" | field uuid)
core -X DELETE "http://x/v1/attachments/$A?force=true" || fail "fence"
kill9 ovsd
lose_registry
start_ovsd
kill -CONT "$(cat /tmp/ovsd-edge.pid)"
within 60 "the fenced device still reads" refused
lists "$V" && fail "a fenced device is kept"
unmount_volume v1 c
within 30 "devices stay" no_devices
mount_volume v1 d
check_written
unmount_volume v1 d
within 30 "devices stay" no_devices

step "what nobody opens goes by itself"
curl -sS --unix-socket $R/run/ovs/edge.sock -X PUT -d '{"block_size_bytes":512}' "http://x/v1/devices/$V" | grep -q '"was_there":false' || fail "PUT"
same "$(cat /sys/block/nbd0/queue/logical_block_size)" 512 "block size"
curl -sS --unix-socket $R/run/ovs/edge.sock -X DELETE "http://x/v1/devices/$V"
within 20 "it stays" no_devices

step "a device that cannot be opened is not left behind"
mv /dev/nbd0 /dev/nbd0.away
ln -s /nowhere /dev/nbd0
curl -sS --unix-socket $R/run/ovs/edge.sock -X PUT -d '{"block_size_bytes":512}' "http://x/v1/devices/$V" | grep -q '"was_there"' && fail "PUT"
no_devices || fail "it stays"
attached && fail "the attachment stays"
mount_volume v1 e
carries /dev/loop0 || fail "not on a loop device"
unmount_volume v1 e
rm /dev/nbd0
mv /dev/nbd0.away /dev/nbd0

step "loop devices on request, and no change under a user"
kill9 ovsd-docker
start_plugin --device loop
create v2 64MiB
mount_volume v2 a
carries /dev/loop0 || fail "not on a loop device"
kill9 ovsd-docker
start_plugin --device nbd
mount_volume v2 b
carries /dev/loop0 || fail "changed under a user"
unmount_volume v2 a
unmount_volume v2 b
mount_volume v2 a
carries /dev/nbd0 || fail "not on an NBD device"
unmount_volume v2 a

step remove
for volume in v1 v2; do same "$(plugin Remove "{\"Name\":\"$volume\"}")" '{"Err":""}' "Remove $volume"; done
within 20 "devices stay" no_devices
for program in ovsd-docker ovsd-edge ovsd; do
    grep -l 'panicked at' "$R/log/$program" && fail "$program panicked"
    kill "$(cat /tmp/$program.pid)"
    wait "$(cat /tmp/$program.pid)" || fail "$program ended with $?"
done
dmesg | grep -E 'BUG:|Oops|WARNING: CPU' && fail "the kernel complains"
step done
exit 0
