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

# In namespaces of their own all have the usual one: what moves is the address.
redis_port() { if has_net; then echo 6379; else port_of "$1"; fi; }

redis_one() {
  net_join "$1"
  server_alive "$1" || step "start $1 ($(redis-server --version | cut -d' ' -f1-3))" redis_start "$1" ||
    die "$1 did not start"
}

# The one that the others follow: redis-1, until another is promoted.
redis_master() { cat "$dir/choice/redis-master" 2>/dev/null || echo redis-1; }

# redis_promote NAME: it takes writes from now on, with what it has; the others follow it from
# their next start.
redis_promote() {
  echo "$1" >"$dir/choice/redis-master"
  [ "$(redis-cli -h "$(host_of "$1")" -p "$(redis_port "$1")" replicaof no one)" = OK ]
}

redis_start() {
  local name=$1 master replica=()
  master=$(redis_master)
  [ "$name" = "$master" ] || replica=(--replicaof "$(host_of "$master")" "$(redis_port "$master")")
  mkdir -p "$dir/$name/data"
  server_start "$name" redis-server --port "$(redis_port "$name")" --appendonly yes \
    $(if has_net; then echo "--bind 0.0.0.0 --protected-mode no"; else echo "--bind 127.0.0.1"; fi) \
    --repl-diskless-sync-delay 0 --dir "$dir/$name/data" "${replica[@]}"
  server_wait "$name" 30 redis_answers "$name"
}

redis_answers() {
  [ "$(redis-cli -h "$(host_of "$1")" -p "$(redis_port "$1")" ping)" = PONG ] || return 1
  [ "$1" = "$(redis_master)" ] || redis-cli -h "$(host_of "$1")" -p "$(redis_port "$1")" info replication | grep -q '^master_link_status:up'
}

redis_status() {
  printf '%s:%s' "$(host_of "$1")" "$(redis_port "$1")"
  [ "$1" = "$(redis_master)" ] || printf '  replica of %s' "$(redis_master)"
}

redis_env() {
  echo "export ONRUSH_STACK_REDIS=$(host_of redis-1):$(redis_port redis-1)"
  [ ! -d "$dir/redis-2" ] || echo "export ONRUSH_STACK_REDIS_REPLICA=$(host_of redis-2):$(redis_port redis-2)"
}
