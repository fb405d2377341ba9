# Sourced by scripts/stack: Redis from the distribution, every write in its append-only file.
# shellcheck shell=bash disable=SC2154

redis_install() {
  need redis-server redis-server
  need redis-cli redis-tools
}

redis_up() {
  wants redis "$redis_kind" single
  case $chosen in
  single | replica) ;;
  *) rm -f "$dir/choice/redis" && die "scripts/stack: --redis takes single or replica" ;;
  esac
  redis_one redis-1
  [ "$chosen" = single ] || redis_one redis-2
}

redis_one() {
  server_alive "$1" || step "start $1 ($(redis-server --version | cut -d' ' -f1-3))" redis_start "$1" ||
    die "$1 did not start"
}

redis_start() {
  local name=$1 replica=()
  [ "$name" = redis-1 ] || replica=(--replicaof 127.0.0.1 "$(port_of redis-1)")
  mkdir -p "$dir/$name/data"
  server_start "$name" redis-server --port "$(port_of "$name")" --bind 127.0.0.1 --appendonly yes \
    --repl-diskless-sync-delay 0 --dir "$dir/$name/data" "${replica[@]}"
  server_wait "$name" 30 redis_answers "$name"
}

redis_answers() {
  [ "$(redis-cli -p "$(port_of "$1")" ping)" = PONG ] || return 1
  [ "$1" = redis-1 ] || redis-cli -p "$(port_of "$1")" info replication | grep -q '^master_link_status:up'
}

redis_status() {
  printf '127.0.0.1:%s' "$(port_of "$1")"
  [ "$1" = redis-1 ] || printf '  replica of redis-1'
}

redis_env() {
  echo "export ONRUSH_STACK_REDIS=127.0.0.1:$(port_of redis-1)"
  [ ! -d "$dir/redis-2" ] || echo "export ONRUSH_STACK_REDIS_REPLICA=127.0.0.1:$(port_of redis-2)"
}
