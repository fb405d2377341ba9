# Sourced by every script here: where things are, how steps are shown, what is cleaned up.
#
# A script sources this file first. From then on:
#   $root, $target        the clone, and cargo's target folder (CARGO_TARGET_DIR is honoured)
#   say, note, die        a heading, a line in passing, an error and exit 1
#   step NAME CMD…        runs a quiet command; shows NAME, the seconds, and on failure its output
#   spawn LOG CMD…        starts a process of ours in the background; its id is in $spawned
#   stop PID [SECONDS]    SIGTERM, and SIGKILL when it has not gone by then
# Whatever was spawned, and every folder from `scratch`, is gone when the script ends.
# shellcheck shell=bash

set -euo pipefail

caller_dir=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$caller_dir/$target ;; esac
export CARGO_TARGET_DIR=$target
cd "$root"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' plain=$'\e[0m'
  clear_line=$'\r\e[K'
else
  bold='' dim='' red='' green='' yellow='' plain='' clear_line=''
fi

say() { printf '%s\n' "${bold}$*${plain}"; }
note() { printf '%s\n' "${dim}$*${plain}"; }
warn() { printf '%s\n' "${yellow}$*${plain}" >&2; }
die() {
  printf '%s\n' "${red}$*${plain}" >&2
  exit 1
}

own_pids=()
own_dirs=()
own_hooks=()

# Ends what this script started, by process id; never anything by name.
clean_up() {
  local pid dir hook
  for pid in "${own_pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${own_pids[@]}"; do stop "$pid" 5; done
  for hook in "${own_hooks[@]}"; do "$hook" || true; done
  for dir in "${own_dirs[@]}"; do rm -rf "$dir"; done
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# A fresh folder outside the clone, removed at the end; its path is in $scratched.
scratch() {
  scratched=$(mktemp -d "${TMPDIR:-/tmp}/onrush-$1.XXXXXX")
  own_dirs+=("$scratched")
}

spawn() {
  local log=$1
  shift
  "$@" >>"$log" 2>&1 </dev/null &
  spawned=$!
  own_pids+=("$spawned")
}

# Forgets a process, so that it outlives the script (`scripts/demo --keep`).
release() {
  local kept=() pid
  for pid in "${own_pids[@]}"; do [ "$pid" = "$1" ] || kept+=("$pid"); done
  own_pids=("${kept[@]}")
}

alive() { kill -0 "$1" 2>/dev/null; }

stop() {
  local pid=$1 tenths=$((${2:-10} * 10))
  kill -TERM "$pid" 2>/dev/null || true
  while alive "$pid" && [ "$tenths" -gt 0 ]; do
    sleep 0.1
    tenths=$((tenths - 1))
  done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  release "$pid"
}

now_ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# Seconds with one decimal from milliseconds.
seconds() { printf '%d.%d' $(($1 / 1000)) $(($1 % 1000 / 100)); }

# Runs a quiet command under a name. On a terminal the seconds count up while it runs.
step() {
  local name=$1 log code=0 begun pid
  shift
  log=$(mktemp "${TMPDIR:-/tmp}/onrush-step.XXXXXX")
  begun=$(now_ms)
  [ -n "$clear_line" ] || printf '%s …\n' "$name"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  own_pids+=("$pid")
  while alive "$pid"; do
    [ -z "$clear_line" ] || printf '%s… %s %ss' "$clear_line" "$name" "$(seconds $(($(now_ms) - begun)))"
    sleep 0.1
  done
  wait "$pid" || code=$?
  release "$pid"
  if [ "$code" = 0 ]; then
    printf '%s%s✓%s %s %s%ss%s\n' "$clear_line" "$green" "$plain" "$name" "$dim" \
      "$(seconds $(($(now_ms) - begun)))" "$plain"
  else
    printf '%s%s✗ %s%s\n' "$clear_line" "$red" "$name" "$plain"
    tail -n 60 "$log"
  fi
  rm -f "$log"
  return "$code"
}

# Installs Debian packages where a command is missing and this machine lets us; else says how.
need() {
  local command=$1 package=$2
  command -v "$command" >/dev/null && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    step "install $package" install_package "$package" && return
  fi
  die "$command is missing: install it (Debian: apt-get install $package)"
}

install_package() {
  apt-get install -y --no-install-recommends "$1" ||
    { apt-get update && apt-get install -y --no-install-recommends "$1"; }
}

# What a build needs, and nothing more: a Rust toolchain, a C compiler and make.
need_toolchain() {
  command -v cargo >/dev/null ||
    die "cargo is missing: install Rust $(rust_version) or newer (rustup, or your distribution)"
  local have want
  have=$(rustc --version | cut -d' ' -f2) want=$(rust_version)
  [ "$(printf '%s\n%s\n' "$want" "${have%%-*}" | sort -V | head -n1)" = "$want" ] ||
    die "Rust $have is too old: Onrush needs $want or newer (rustup update stable)"
  need cc build-essential
  need make build-essential
  command -v "${CXX:-c++}" >/dev/null || export CXX=$root/scripts/no-cxx
}

rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml"; }

# metrics ADDRESS: what a node's admin listener says of itself, to stdout; fails within two seconds.
metrics() {
  # shellcheck disable=SC2016
  timeout 2 bash -c 'exec 9<>"/dev/tcp/${1%:*}/${1##*:}" || exit 1
    printf "GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n" >&9; cat <&9' - "$1" 2>/dev/null
}

# of_metrics PATTERN: the sum of the series that match, from stdin; -1 where there is none.
of_metrics() { awk -v of="$1" '$0 ~ of { n += $2; seen = 1 } END { printf "%d", seen ? n : -1 }'; }

# The databases of `scripts/stack env`, as onrush-load reads them.
store_url() {
  local password urls
  password=$(cat "$ONRUSH__STORE__MYSQL__PASSWORD_FILE")
  urls=$(grep -o 'mysql://[^"]*' <<<"$ONRUSH__STORE__MYSQL__URLS" | paste -sd,)
  echo "${urls//onrush@/onrush:$password@}"
}

# build_for_tests: the commands, from the build that the tests make anyway.
build_for_tests() {
  cargo build --quiet --workspace --locked --bins --tests ${ONRUSH_FEATURES:+--features "$ONRUSH_FEATURES"}
}
