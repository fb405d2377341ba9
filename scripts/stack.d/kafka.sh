# Sourced by scripts/stack: Apache Kafka in KRaft mode, the real broker, from its jars.
#
# Each broker is its own controller too; three of them form one quorum. Topics are never made by
# accident (auto.create.topics.enable=false): `onrush kafka init` makes them as they should be.
# shellcheck shell=bash disable=SC2154

kafka_version=$(sed -n 's/^      <version>\(4[^<]*\)<.*/\1/p' "$root/scripts/stack.d/kafka/pom.xml" | head -n1)
kafka_home=$cache/kafka-$kafka_version
kafka_user=onrush

kafka_install() {
  need java default-jre-headless
  need kcat kcat
  [ -f "$kafka_home/.complete" ] || {
    need mvn maven
    step "fetch Apache Kafka $kafka_version" once "$kafka_home" kafka_fetch ||
      die "Kafka could not be fetched: is Maven's repository reachable?"
  }
}

kafka_fetch() {
  mvn -q -B -f "$root/scripts/stack.d/kafka/pom.xml" dependency:copy-dependencies \
    -DoutputDirectory="$kafka_home/libs" </dev/null
}

kafka_java() { java -cp "$kafka_home/libs/*" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn "$@"; }

kafka_up() {
  local n name names=() count
  wants kafka "$kafka_count" 1 && count=$chosen
  case $count in 1 | 3) ;; *) rm -f "$dir/choice/kafka" && die "scripts/stack: --kafka takes 1 or 3" ;; esac
  wants secure "$kafka_secure" no
  [ "$chosen" = no ] || kafka_certificates
  for n in $(seq "$count"); do
    name=kafka-$n
    net_join "$name"
    names+=("$name")
    server_alive "$name" || step "start $name (Apache Kafka $kafka_version)" kafka_prepare_and_spawn "$n" "$count" ||
      die "$name did not start"
  done
  for name in "${names[@]}"; do
    step "$name answers" server_wait "$name" 180 kafka_sees "$name" "$count" || die "$name does not answer"
  done
}

# One broker again, as it was.
kafka_start() {
  kafka_spawn "$1"
  server_wait "$1" 180 kafka_sees "$1" 1
}

# Whether a broker answers, and knows at least so many live ones.
kafka_sees() {
  local lines
  lines=$(kcat -b "$(host_of "$1"):$(port_of "$1")" -m 2 -L 2>/dev/null) || return 1
  [ "$(grep -c '^  broker ' <<<"$lines")" -ge "$2" ]
}

kafka_prepare_and_spawn() {
  local n=$1 count=$2 name=kafka-$1 voters='' i
  local home=$dir/$name
  mkdir -p "$home"
  if ! [ -f "$home/server.properties" ]; then
    for i in $(seq "$count"); do
      voters+=${voters:+,}$i@$(host_of "kafka-$i"):$(port_of "kafka-$i-controller")
    done
    kafka_properties "$n" "$count" "$voters" >"$home/server.properties"
  fi
  if ! [ -f "$home/data/meta.properties" ]; then
    local scram=()
    [ ! -f "$dir/tls/password" ] ||
      scram=(--add-scram "SCRAM-SHA-256=[name=$kafka_user,password=$(cat "$dir/tls/password")]")
    kafka_java -Xmx128m kafka.tools.StorageTool format -t "$(kafka_cluster_id)" \
      -c "$home/server.properties" --ignore-formatted "${scram[@]}" || return 1
  fi
  kafka_spawn "$name"
}

# 16 random bytes, the same for all brokers of the stack.
kafka_cluster_id() {
  local file=$dir/choice/kafka-cluster
  [ -f "$file" ] || echo "A$(head -c 32 /dev/urandom | base64 | tr -d '+/=\n' | cut -c1-20)A" >"$file"
  cat "$file"
}

kafka_spawn() {
  server_start "$1" java -Xms256m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=4 \
    -cp "$kafka_home/libs/*" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    kafka.Kafka "$dir/$1/server.properties"
}

kafka_properties() {
  local n=$1 count=$2 voters=$3 port controller isr=1 host
  host=$(host_of "kafka-$n")
  port=$(port_of "kafka-$n") controller=$(port_of "kafka-$n-controller")
  [ "$count" = 1 ] || isr=2
  local listeners=PLAINTEXT://$host:$port security=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
  if [ -d "$dir/tls" ]; then
    listeners+=,SECURE://$host:$(port_of "kafka-$n-secure")
    security+=,SECURE:SASL_SSL
    cat <<SECURE
sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.secure.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location=$dir/tls/broker.pem
SECURE
  fi
  cat <<PROPERTIES
process.roles=broker,controller
node.id=$n
controller.quorum.voters=$voters
listeners=$listeners,CONTROLLER://$host:$controller
advertised.listeners=$listeners
listener.security.protocol.map=$security
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs=$dir/kafka-$n/data
auto.create.topics.enable=false
default.replication.factor=$count
min.insync.replicas=$isr
offsets.topic.replication.factor=$count
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$count
transaction.state.log.min.isr=$isr
share.coordinator.state.topic.replication.factor=$count
share.coordinator.state.topic.min.isr=$isr
group.initial.rebalance.delay.ms=0
controlled.shutdown.enable=true
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
num.network.threads=2
num.io.threads=4
log.cleaner.enable=false
PROPERTIES
}

# A certificate authority, a broker's certificate of it, another authority that signed nothing
# here, and a password.
kafka_certificates() {
  local tls=$dir/tls
  [ ! -f "$tls/password" ] || return 0
  need openssl openssl
  step "make certificates" kafka_make_certificates "$tls" || die "the certificates could not be made"
}

kafka_make_certificates() {
  local tls=$1 name
  mkdir -p "$tls"
  for name in ca other-ca; do
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=onrush test $name" \
      -keyout "$tls/$name.key" -out "$tls/$name.pem" || return 1
  done
  openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout "$tls/broker.key" \
    -out "$tls/broker.csr" || return 1
  openssl x509 -req -in "$tls/broker.csr" -CA "$tls/ca.pem" -CAkey "$tls/ca.key" -CAcreateserial \
    -days 30 -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost') \
    -out "$tls/broker.crt" || return 1
  # The key must be PKCS #8, the certificate chain behind it.
  openssl pkcs8 -topk8 -nocrypt -in "$tls/broker.key" >"$tls/broker.pem" || return 1
  cat "$tls/broker.crt" "$tls/ca.pem" >>"$tls/broker.pem"
  chmod 600 "$tls"/*.key "$tls/broker.pem"
  (umask 077 && head -c 18 /dev/urandom | base64 | tr -d '+/=\n' >"$tls/password")
}

kafka_list() {
  local name list=''
  for name in $(servers_of kafka); do list+=${list:+,}$(host_of "$name"):$(port_of "$name$1"); done
  echo "$list"
}

kafka_status() {
  printf 'Kafka %s  %s:%s' "$kafka_version" "$(host_of "$1")" "$(port_of "$1")"
  [ ! -d "$dir/tls" ] || printf '  TLS and SCRAM %s:%s' "$(host_of "$1")" "$(port_of "$1-secure")"
}

kafka_env() {
  local copies
  copies=$(cat "$dir/choice/kafka")
  echo "export ONRUSH_STACK_KAFKA=$(kafka_list '')"
  echo "export ONRUSH__LOG__KIND=kafka ONRUSH__LOG__KAFKA__BOOTSTRAP=$(kafka_list '')"
  echo "export ONRUSH__LOG__KAFKA__REPLICATION=$copies ONRUSH__LOG__KAFKA__MIN_INSYNC=$(((copies + 1) / 2))"
  [ -d "$dir/tls" ] || return 0
  echo "export ONRUSH_STACK_KAFKA_SECURE=$(kafka_list -secure)"
  echo "export ONRUSH_STACK_KAFKA_USER=$kafka_user"
  printf 'export ONRUSH_STACK_KAFKA_PASSWORD_FILE=%q\n' "$dir/tls/password"
  printf 'export ONRUSH_STACK_KAFKA_CA_FILE=%q\n' "$dir/tls/ca.pem"
}
