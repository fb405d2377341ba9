# MySQL and MariaDB servers for a stack. Sourced behind lib.sh; nothing of the system is touched.
#
# The server comes from a private root: the packages of the machine's own Debian source, unpacked
# into the cache and run through their own loader. MySQL is in the suite sid alone, MariaDB in the
# machine's own. Where MySQL cannot be had, MariaDB takes its place, and that is said.
#
#   mysql_flavour          mysql (default) or mariadb; what really runs once mysql_install returned
#   stack_dir              where a stack keeps its state; here DIR/mysql
#   mysql_install          fetches and unpacks what is missing
#   mysql_named            which server it is, in words, and whether it is in place of another
#   mysql_up N R           N database shards with R replicas each; returns when all are healthy
#   mysql_down             ends them all, and their data with --purge
#   mysql_status           a line per server; 1 where one does not answer
#   mysql_env              the settings that point Onrush at them, as NAME=VALUE
#   mysql_client NAME …    the client, as the administrator, on server NAME (db-0, db-0-replica-0)
#   mysql_stop NAME [SIG]  ends one server (TERM, or KILL as a crash would)
#   mysql_start NAME       starts it again on its data and port
#
# In DIR/mysql: `flavour`, `instead` (of what, and why), `password` (user onrush, rights on databases
# onrush%), `admin-password` (user admin, every right), and a folder per server: `port`, `pid`,
# `log.err`, `data/`.
# shellcheck shell=bash
source "${root:?lib.sh comes first}/scripts/stack.d/ports.sh"

: "${mysql_flavour:=mysql}"
onrush_cache=${XDG_CACHE_HOME:-$HOME/.cache}/onrush
# Units: MiB per server.
: "${mysql_pool_mb:=128}"
mysql_instead=
# How long a server may take to answer. Units: seconds.
mysql_patience=60
# Debian's suite that has MySQL.
: "${ONRUSH_MYSQL_SUITE:=sid}"

# Where a server listens: on loopback, or on an address that the sourcing script gives it.
mysql_host() { if declare -F host_of >/dev/null; then host_of "$1"; else echo 127.0.0.1; fi; }

mysql_dir() { echo "${stack_dir:?where the stack keeps its state}/mysql"; }
mysql_root() { echo "$onrush_cache/$mysql_flavour"; }

# Fetches what is missing; leaves the flavour that can be had in $mysql_flavour.
mysql_install() {
  local wanted=$mysql_flavour
  mysql_instead=${mysql_instead:-$(cat "$(mysql_dir)/instead" 2>/dev/null || true)}
  if [ -f "$(mysql_dir)/flavour" ]; then
    mysql_flavour=$(<"$(mysql_dir)/flavour")
    [ "$mysql_flavour" = "$wanted" ] || [ "$wanted" = mysql ] ||
      die "the stack in $stack_dir runs $mysql_flavour: take it down first"
  fi
  if ! mysql_fetch "$mysql_flavour" && [ "$mysql_flavour" = mysql ]; then
    mysql_instead='in place of MySQL, which could not be fetched here'
    mysql_flavour=mariadb
    mysql_fetch mariadb || die "neither MySQL nor MariaDB can be fetched from this machine's sources"
  fi
  [ -f "$(mysql_root)/version" ] || die "$mysql_flavour cannot be fetched from this machine's sources"
}

mysql_named() {
  local name=MySQL
  [ "$mysql_flavour" = mysql ] || name=MariaDB
  echo "$name $(head -n1 "$(mysql_root)/version")${mysql_instead:+, $mysql_instead}"
}

# One at a time on a machine: the second finds it done.
mysql_fetch() {
  local flavour=$1
  mkdir -p "$onrush_cache"
  (
    flock 9
    [ -f "$onrush_cache/$flavour/version" ] && exit
    rm -rf "$onrush_cache/$flavour.fetch"
    step "fetch $flavour" mysql_unpack "$flavour" "$onrush_cache/$flavour.fetch" >&2
  ) 9>"$onrush_cache/$flavour.lock"
}

# The packages of one suite, with all that they need, as if nothing were installed.
mysql_unpack() {
  local flavour=$1 work=$2 new=$2/root version suite=
  local packages=(mariadb-server-core mariadb-client-core)
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  if [ "$flavour" = mysql ]; then
    packages=(mysql-server-core mysql-client-core)
    suite=$ONRUSH_MYSQL_SUITE
  fi
  mkdir -p "$work"/{sources,lists/partial,cache/archives/partial} "$new"
  : >"$work/status"
  mysql_sources "$suite" "$work/sources" || return 1
  local apt=(apt-get -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources"
    -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache"
    -o "Dir::State::status=$work/status" -o APT::Install-Recommends=false
    -o APT::Sandbox::User=)
  "${apt[@]}" update || return 1
  # -y and --download-only: nothing is installed, and no lock of the system's is taken.
  "${apt[@]}" -o Debug::NoLocking=1 install -y --download-only "${packages[@]}" || return 1
  local deb
  for deb in "$work"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$new" || return 1; done
  version=$(mysql_in_root "$new" "$flavour" --version | sed 's/.* Ver \([^ ]*\).*/\1/')
  mysql_make_template "$new" "$flavour" || return 1
  echo "$version" >"$new/version"
  rm -rf "${onrush_cache:?}/$flavour"
  mv "$new" "$onrush_cache/$flavour"
  rm -rf "$work"
}

# The machine's own Debian source, for that suite (none: its own).
mysql_sources() {
  local suite=$1 to=$2 file=/etc/apt/sources.list.d/debian.sources
  if [ -f "$file" ]; then
    awk 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1' "$file" |
      if [ -n "$suite" ]; then sed "s/^Suites:.*/Suites: $suite/"; else cat; fi >"$to/own.sources"
  elif [ -f /etc/apt/sources.list ]; then
    grep -m1 '^deb ' /etc/apt/sources.list |
      if [ -n "$suite" ]; then sed -E "s/^(deb (\[[^]]*\] )?[^ ]+) [^ ]+/\1 $suite/"; else cat; fi \
        >"$to/own.list"
  else
    return 1
  fi
}

# The server program of a root, with what it must be told wherever it lies.
mysql_in_root() {
  local of=$1 flavour=$2 libs
  shift 2
  libs=$(mysql_libs "$of")
  if [ "$flavour" = mysql ]; then
    exec_in_root "$of" "$libs" sbin/mysqld --no-defaults --user="$(id -un)" --basedir="$of/usr" \
      --lc-messages-dir="$of/usr/share/mysql" --character-sets-dir="$of/usr/share/mysql/charsets" \
      --plugin-dir="$of/usr/lib/mysql/plugin" --secure-file-priv=NULL "$@"
  else
    exec_in_root "$of" "$libs" sbin/mariadbd --no-defaults --user="$(id -un)" --basedir="$of/usr" \
      --lc-messages-dir="$of/usr/share/mysql" --character-sets-dir="$of/usr/share/mysql/charsets" \
      --plugin-dir="$of/usr/lib/mysql/plugin" "$@"
  fi
}

# Where a root's libraries lie: Debian has moved them below usr.
mysql_libs() {
  local folder libs=''
  for folder in "$1"/usr/lib/*-linux-gnu* "$1"/lib/*-linux-gnu*; do
    [ ! -d "$folder" ] || libs+=${libs:+:}$folder
  done
  echo "$libs"
}

# Through the root's own loader. With mysql_exec=exec the process becomes the program itself.
exec_in_root() {
  local of=$1 libs=$2 program=$3 loader
  shift 3
  for loader in "$of"/usr/lib/*-linux-gnu*/ld-linux*.so.* "$of"/lib/*-linux-gnu*/ld-linux*.so.*; do
    [ ! -f "$loader" ] || break
  done
  ${mysql_exec:-} "$loader" --library-path "$libs" "$of/usr/$program" "$@"
}

# A fresh data folder, copied for each server: creating one takes longer than starting it.
mysql_make_template() {
  local of=$1 flavour=$2 data=$1/template share=$1/usr/share/mysql
  if [ "$flavour" = mysql ]; then
    mysql_in_root "$of" mysql --initialize-insecure --datadir="$data" || return 1
    # Each server gets an identity of its own at its first start.
    rm -f "$data/auto.cnf"
  else
    mkdir -p "$data"
    {
      printf '%s;\n' 'create database mysql' 'use mysql' 'SET @auth_root_socket=NULL'
      cat "$share"/mysql_system_tables.sql "$share"/mysql_performance_tables.sql \
        "$share"/mysql_system_tables_data.sql "$share"/maria_add_gis_sp_bootstrap.sql \
        "$share"/mysql_sys_schema.sql
    } | mysql_in_root "$of" mariadb --bootstrap --datadir="$data" --log-warnings=0 \
      --max-allowed-packet=8M || return 1
  fi
}

mysql_password() { head -c 18 /dev/urandom | base64 | tr '+/' '-_'; }

# Starts what is not running; a second call finds it done.
mysql_up() {
  local shards=$1 replicas=${2:-0} dir shard replica
  dir=$(mysql_dir)
  mysql_install
  mkdir -p "$dir"
  echo "$mysql_flavour" >"$dir/flavour"
  [ -z "$mysql_instead" ] || echo "$mysql_instead" >"$dir/instead"
  (
    umask 077
    [ -f "$dir/password" ] || mysql_password >"$dir/password"
    [ -f "$dir/admin-password" ] || mysql_password >"$dir/admin-password"
  )
  for ((shard = 0; shard < shards; shard++)); do
    mysql_create "db-$shard" $((shard * 100 + 1))
    mysql_launch "db-$shard"
    for ((replica = 0; replica < replicas; replica++)); do
      mysql_create "db-$shard-replica-$replica" $((shard * 100 + replica + 2))
      mysql_launch "db-$shard-replica-$replica"
    done
  done
  for ((shard = 0; shard < shards; shard++)); do
    mysql_wait "db-$shard"
    for ((replica = 0; replica < replicas; replica++)); do
      mysql_follow "db-$shard-replica-$replica" "db-$shard"
      mysql_wait "db-$shard-replica-$replica"
    done
  done
}

# A server's folder: data from the template, a port, the accounts it begins with.
mysql_create() {
  local name=$1 id=$2 home
  home=$(mysql_dir)/$name
  ! declare -F net_join >/dev/null || net_join "$name"
  [ -f "$home/port" ] && return
  rm -rf "$home"
  mkdir -p "$home"
  cp -a --reflink=auto "$(mysql_root)/template" "$home/data"
  echo "$id" >"$home/server-id"
  case $name in
  *-replica-*) : >"$home/init.sql" ;;
  *) mysql_accounts >"$home/init.sql" ;;
  esac
  chmod 600 "$home/init.sql"
  reserve_port "$(mysql_dir)" "$home/port"
}

# One statement a line, as --init-file wants it; harmless when it runs again at each start.
mysql_accounts() {
  local dir
  dir=$(mysql_dir)
  echo "CREATE USER IF NOT EXISTS 'admin'@'%' IDENTIFIED BY '$(<"$dir/admin-password")';"
  echo "GRANT ALL PRIVILEGES ON *.* TO 'admin'@'%' WITH GRANT OPTION;"
  echo "CREATE USER IF NOT EXISTS 'onrush'@'%' IDENTIFIED BY '$(<"$dir/password")';"
  echo "GRANT ALL PRIVILEGES ON \`onrush%\`.* TO 'onrush'@'%';"
  echo "CREATE DATABASE IF NOT EXISTS onrush CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;"
}

mysql_launch() {
  local name=$1 home port
  home=$(mysql_dir)/$name port=$(<"$(mysql_dir)/$1/port")
  mysql_alive "$name" && return
  # What a kill left: it names a process that has ended, but may not be gone from the table yet.
  rm -f "$home/data/s.sock" "$home/data/s.sock.lock"
  # A path that is not absolute lies in the data folder: no limit of length can be met.
  local options=(--datadir="$home/data" --port="$port" --bind-address="$(mysql_host "$name")" --socket=s.sock
    --pid-file="$home/pid" --server-id="$(<"$home/server-id")" --init-file="$home/init.sql"
    --skip-name-resolve --character-set-server=utf8mb4 --collation-server=utf8mb4_bin
    --innodb-buffer-pool-size="${mysql_pool_mb}M" --innodb-flush-log-at-trx-commit=1
    --log-bin=binlog --sync-binlog=1 --binlog-format=ROW --performance-schema=OFF
    --max-connections=200 --lower-case-table-names=0)
  case $name in *-replica-*) options+=(--read-only=1) ;; esac
  if [ "$mysql_flavour" = mysql ]; then
    options+=(--mysqlx=OFF --gtid-mode=ON --enforce-gtid-consistency=ON --log-error="$home/log.err")
    case $name in *-replica-*) options+=(--super-read-only=1) ;; esac
  else
    options+=(--log-error="$home/log.err" --innodb-log-file-size=100M)
  fi
  (
    # The server outlives this script, and holds none of its files open.
    mysql_exec='exec setsid'
    ! declare -F has_net >/dev/null || ! has_net ||
      mysql_exec="exec setsid nsenter --net=/run/netns/$(net_space "$name")"
    mysql_in_root "$(mysql_root)" "$mysql_flavour" "${options[@]}"
  ) >>"$home/log" 2>&1 </dev/null 9>&- &
  echo "$!" >"$home/pid"
  disown
}

# Whether the process that the pid file names is this server.
mysql_alive() {
  local home pid
  home=$(mysql_dir)/$1
  pid=$(cat "$home/pid" 2>/dev/null) && [ -n "$pid" ] &&
    { tr '\0' '\n' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qxF -- "--datadir=$home/data"
}

# Whether a process has ended, and let go of its files: one that is killed loses its command line
# long before.
mysql_gone() {
  local state
  state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 0
  [ -z "$state" ] || [ "$state" = Z ]
}

mysql_ping() { mysql_client "$1" -N -e 'SELECT 1' >/dev/null 2>&1; }

mysql_wait() {
  local name=$1 tenths=$((mysql_patience * 10))
  until mysql_ping "$name"; do
    tenths=$((tenths - 1))
    if [ "$tenths" = 0 ] || { [ $((tenths % 10)) = 0 ] && ! mysql_alive "$name"; }; then
      tail -n 20 "$(mysql_dir)/$name"/log* >&2
      die "$mysql_flavour $name does not answer"
    fi
    sleep 0.1
  done
}

# As root over the socket: the accounts of a fresh replica come with what it replicates.
mysql_socket_client() {
  local name=$1
  shift
  (cd "$(mysql_dir)/$name/data" &&
    mysql_client_program --no-defaults --protocol=socket --socket=s.sock --user=root "$@")
}

mysql_follow() {
  local name=$1 of=$2 dir port password tenths=$((mysql_patience * 10))
  dir=$(mysql_dir)
  [ -f "$dir/$name/follows" ] && return
  port=$(<"$dir/$of/port") password=$(<"$dir/admin-password")
  until mysql_socket_client "$name" -e 'SELECT 1' >/dev/null 2>&1; do
    tenths=$((tenths - 1))
    [ "$tenths" -gt 0 ] || die "$mysql_flavour $name does not answer"
    sleep 0.1
  done
  if [ "$mysql_flavour" = mysql ]; then
    mysql_socket_client "$name" -e "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '$(mysql_host "$of")',
      SOURCE_PORT = $port, SOURCE_USER = 'admin', SOURCE_PASSWORD = '$password',
      SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1, SOURCE_CONNECT_RETRY = 1;
      START REPLICA" 2>/dev/null || die "$name cannot follow $of"
  else
    mysql_socket_client "$name" -e "CHANGE MASTER TO MASTER_HOST = '$(mysql_host "$of")',
      MASTER_PORT = $port, MASTER_USER = 'admin', MASTER_PASSWORD = '$password',
      MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1; START SLAVE" ||
      die "$name cannot follow $of"
  fi
  echo "$of" >"$dir/$name/follows"
}

mysql_client_program() {
  local of libs program=bin/mysql
  of=$(mysql_root) libs=$(mysql_libs "$(mysql_root)")
  [ "$mysql_flavour" = mysql ] || program=bin/mariadb
  exec_in_root "$of" "$libs" "$program" "$@"
}

mysql_client() {
  local name=$1 dir
  shift
  dir=$(mysql_dir)
  MYSQL_PWD=$(<"$dir/admin-password") mysql_client_program --no-defaults --protocol=tcp \
    --host="$(mysql_host "$name")" --port="$(<"$dir/$name/port")" --user=admin --connect-timeout=5 "$@"
}

mysql_servers() {
  local port
  for port in "$(mysql_dir)"/*/port; do
    [ -f "$port" ] && basename "$(dirname "$port")"
  done
}

mysql_start() {
  [ -n "${mysql_known:-}" ] || mysql_flavour=$(<"$(mysql_dir)/flavour")
  mysql_launch "$1"
  mysql_wait "$1"
}

mysql_stop() {
  local name=$1 signal=${2:-TERM} pid tenths=300
  mysql_alive "$name" || return 0
  pid=$(<"$(mysql_dir)/$name/pid")
  # One that was paused does not hear SIGTERM.
  [ "$signal" = KILL ] || kill -CONT "$pid" 2>/dev/null || true
  kill "-$signal" "$pid" 2>/dev/null || true
  until mysql_gone "$pid"; do
    tenths=$((tenths - 1))
    [ "$tenths" -gt 0 ] || kill -KILL "$pid" 2>/dev/null || true
    sleep 0.05
  done
}

# All are told first, and waited for then. Data that goes away needs no ending in good order.
mysql_down() {
  local name pid
  [ -d "$(mysql_dir)" ] || return 0
  for name in $(mysql_servers); do
    mysql_alive "$name" || continue
    pid=$(<"$(mysql_dir)/$name/pid")
    if [ "${1:-}" = --purge ]; then
      kill -KILL "$pid" 2>/dev/null || true
    else
      kill -CONT "$pid" 2>/dev/null || true
      kill -TERM "$pid" 2>/dev/null || true
    fi
  done
  for name in $(mysql_servers); do mysql_stop "$name"; done
  [ "${1:-}" = --purge ] || return 0
  for name in $(mysql_servers); do free_port "$(mysql_dir)/$name/port"; done
  rm -rf "$(mysql_dir)"
}

mysql_status() {
  local name code=0 address
  [ -f "$(mysql_dir)/flavour" ] || return 0
  mysql_flavour=$(<"$(mysql_dir)/flavour")
  for name in $(mysql_servers); do
    address="$mysql_flavour  $(mysql_host "$name"):$(<"$(mysql_dir)/$name/port")"
    if ! mysql_alive "$name"; then
      printf '%s✗%s %-16s %-12s %s\n' "$red" "$plain" "$name" "not running" "$address"
      code=1
    elif ! mysql_ping "$name"; then
      printf '%s✗%s %-16s pid %-8s %s  does not answer\n' "$red" "$plain" "$name" \
        "$(<"$(mysql_dir)/$name/pid")" "$address"
      code=1
    else
      [ ! -f "$(mysql_dir)/$name/follows" ] || address+="  $(mysql_lag "$name")"
      printf '%s✓%s %-16s pid %-8s %s\n' "$green" "$plain" "$name" \
        "$(<"$(mysql_dir)/$name/pid")" "$address"
    fi
  done
  return "$code"
}

mysql_lag() {
  local sql='SHOW REPLICA STATUS\G'
  mysql_client "$1" -e "$sql" 2>/dev/null | awk '
    /Seconds_Behind_(Source|Master):/ { lag = $2 }
    /Last_(SQL|IO)_Error: ./ { sub(/^ */, ""); error = error " " $0 }
    END { print (lag == "NULL" ? "not following" : lag " s behind") error }'
}

# A list per database shard: `urls` of the primaries, `replicas` of theirs.
mysql_env() {
  local dir name urls='' replicas='' port of sep='' rsep=''
  dir=$(mysql_dir)
  [ -f "$dir/flavour" ] || return 0
  for name in $(mysql_servers | grep -v replica | sort -t- -k2 -n); do
    urls+="$sep\"mysql://onrush@$(mysql_host "$name"):$(<"$dir/$name/port")/onrush\""
    of='' rsep=''
    for port in "$dir/$name"-replica-*/port; do
      [ -f "$port" ] || continue
      of+="$rsep\"mysql://onrush@$(mysql_host "$(basename "${port%/port}")"):$(<"$port")/onrush\""
      rsep=', '
    done
    replicas+="${replicas:+, }[$of]"
    sep=', '
  done
  echo "ONRUSH__STORE__KIND=mysql"
  echo "ONRUSH__STORE__MYSQL__URLS=[$urls]"
  [ "${replicas//[\[\], ]/}" = '' ] || echo "ONRUSH__STORE__MYSQL__REPLICAS=[$replicas]"
  echo "ONRUSH__STORE__MYSQL__PASSWORD_FILE=$dir/password"
}
