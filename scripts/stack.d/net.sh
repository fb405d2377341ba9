# Sourced by scripts/stack: with --netns every server, and everyone who joins, gets a network
# namespace and an address of its own, so that any two of them can be parted.
#
#   net_up                makes the hub: a namespace with a bridge in it; needs root
#   net_join NAME         a namespace with one address, wired to the hub's bridge
#   net_leave             all of them away, with what still runs there
#   host_of NAME          its address; 127.0.0.1 without --netns
#   in_net NAME CMD…      runs CMD there; right here without --netns
#   net_cut A B           from now on nothing that either sends arrives at the other, by whichever
#                         address
#   net_heal              whole again
#   net_address NAME      also gives NAME the stack's movable address, taken from whoever has it;
#                         those who are cut off from NAME do not reach it there either
#
# Entered by nsenter, not by `ip netns exec`: that gives a process a view of mounts of its own, and
# what it joins from there nobody else sees. The hub sees everyone, and so do the scripts, which run inside it. No packet leaves the machine:
# the hub has no way out.
# shellcheck shell=bash disable=SC2154

net_movable=200

has_net() { [ -f "$stack_dir/net/id" ]; }

net_up() {
  [ "$(id -u)" = 0 ] || die "scripts/stack: --netns needs root"
  need ip iproute2
  has_net && ip netns pids "$(net_space hub)" >/dev/null 2>&1 && return
  mkdir -p "$stack_dir/net" "$cache/net"
  local id
  (
    # Numbers are reserved like ports: void once the stack's folder is gone.
    flock 8
    for id in $(seq 1 250); do
      [ ! -f "$cache/net/$id" ] || [ ! -d "$(cat "$cache/net/$id")" ] || continue
      ! ip netns pids "onrush-$id-hub" >/dev/null 2>&1 || continue
      echo "$stack_dir" >"$cache/net/$id"
      echo "$id" >"$stack_dir/net/id"
      break
    done
  ) 8>"$cache/net.lock"
  local hub
  hub=$(net_space hub)
  ip netns add "$hub" || die "no network namespaces can be made here"
  ip -n "$hub" link set lo up
  ip -n "$hub" link add bridge type bridge forward_delay 0 mcast_snooping 0
  ip -n "$hub" addr add "$(net_prefix).254/24" dev bridge
  ip -n "$hub" link set bridge up
}

net_space() { echo "onrush-$(cat "$stack_dir/net/id")-$1"; }
net_prefix() { echo "10.89.$(cat "$stack_dir/net/id")"; }

net_join() {
  has_net || return 0
  [ ! -f "$stack_dir/net/host-$1" ] || return 0
  local n space id hub
  n=$(($(find "$stack_dir/net" -name 'host-*' | wc -l) + 1))
  space=$(net_space "$1") id=$(cat "$stack_dir/net/id") hub=$(net_space hub)
  ip netns add "$space"
  ip link add "or$id-$n" netns "$hub" type veth peer name eth0 netns "$space"
  ip -n "$hub" link set "or$id-$n" master bridge up
  ip -n "$space" addr add "$(net_prefix).$n/24" dev eth0
  ip -n "$space" link set lo up
  ip -n "$space" link set eth0 up
  echo "$(net_prefix).$n" >"$stack_dir/net/host-$1"
}

net_leave() {
  has_net || return 0
  local space pid
  for space in $(ip netns list | cut -d' ' -f1 | grep "^$(net_space '')" | grep -v -- '-hub$') \
    "$(net_space hub)"; do
    for pid in $(ip netns pids "$space" 2>/dev/null); do
      # Not the script that says this, which runs in the hub itself.
      [ "$space" = "$(net_space hub)" ] || kill -KILL "$pid" 2>/dev/null || true
    done
    ip netns del "$space" 2>/dev/null || true
  done
  rm -f "$cache/net/$(cat "$stack_dir/net/id")"
  rm -rf "$stack_dir/net"
}

host_of() {
  if has_net; then cat "$stack_dir/net/host-$1"; else echo 127.0.0.1; fi
}

in_net() {
  local name=$1
  shift
  if has_net; then nsenter --net="/run/netns/$(net_space "$name")" "$@"; else "$@"; fi
}

# Both forget the way to the other: what they send goes to a station that nobody is, in silence,
# as through a broken switch. No filter of the kernel's is needed for it.
net_cut() {
  local a=$1 b=$2 address
  for address in $(net_addresses "$b"); do net_wrong "$a" "$address"; done
  for address in $(net_addresses "$a"); do net_wrong "$b" "$address"; done
}

# Its own, and the movable one where it has that.
net_addresses() {
  ip -n "$(net_space "$1")" -4 -oneline addr show dev eth0 | awk '{ sub("/.*", "", $4); print $4 }'
}

# Whether A forgot the way to B.
net_is_cut() {
  [ -n "$(ip -n "$(net_space "$1")" neigh show to "$(host_of "$2")" dev eth0 nud permanent)" ]
}

net_wrong() {
  ip -n "$(net_space "$1")" neigh replace "$2" lladdr 02:00:00:00:00:01 dev eth0 nud permanent
}

net_heal() {
  local file space
  for file in "$stack_dir/net"/host-*; do
    space=$(net_space "${file##*/host-}")
    ip -n "$space" neigh show nud permanent | cut -d' ' -f1 | while read -r address; do
      ip -n "$space" neigh del "$address" dev eth0
    done
  done
}

# The address that moves from a dead server to its successor; nobody is told but by the network.
net_address() {
  local file name space
  for file in "$stack_dir/net"/host-*; do
    name=${file##*/host-}
    space=$(net_space "$name")
    ip -n "$space" addr del "$(net_prefix).$net_movable/24" dev eth0 2>/dev/null || true
    ip -n "$space" neigh del "$(net_prefix).$net_movable" dev eth0 2>/dev/null || true
    ! net_is_cut "$name" "$1" || net_wrong "$name" "$(net_prefix).$net_movable"
  done
  ip -n "$(net_space hub)" neigh flush dev bridge
  ip -n "$(net_space "$1")" addr add "$(net_prefix).$net_movable/24" dev eth0
}
