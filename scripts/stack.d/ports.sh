# Sourced by the parts of a stack: ports on loopback, each given to one server for good.
#
#   reserve_port OWNER FILE    a free port, kept in FILE and the same one ever after; nobody else
#                              gets it while the folder OWNER is there, whether or not the server
#                              behind it runs
# shellcheck shell=bash

ports_cache=${XDG_CACHE_HOME:-$HOME/.cache}/onrush

# Below those that the system hands out by itself.
reserve_port() {
  local owner=$1 file=$2
  [ ! -f "$file" ] || return 0
  mkdir -p "$(dirname "$file")" "$ports_cache/ports"
  (
    flock 8
    for _ in {1..2000}; do
      port=$((10000 + RANDOM % 20000))
      [ ! -f "$ports_cache/ports/$port" ] || [ ! -d "$(cat "$ports_cache/ports/$port")" ] || continue
      ! (exec 7<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue
      echo "$owner" >"$ports_cache/ports/$port"
      echo "$port" >"$file.new"
      mv "$file.new" "$file"
      exit 0
    done
    exit 1
  ) 8>"$ports_cache/ports.lock" || die "no free port between 10000 and 30000"
}

# free_port FILE: what was reserved there may be given to others.
free_port() { [ ! -f "$1" ] || rm -f "$ports_cache/ports/$(cat "$1")"; }
