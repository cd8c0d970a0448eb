#!/bin/sh
# Makes a folder for `distbelief train --tls DIR`: ca.pem, cert.pem and key.pem, for a try.
#
#   cluster/make-certificates.sh DIR [DAYS]
#
# The authority's own key is thrown away, so nothing else can ever be signed by it; when the
# certificate ends, after DAYS (365), make a new folder. Copy it to every node under the same path,
# readable by nobody but the user who runs distbelief.
set -eu

usage() {
    echo "usage: $0 DIR [DAYS]" >&2
    exit 2
}

[ $# -ge 1 ] && [ $# -le 2 ] && [ -n "$1" ] || usage
dir=$1
days=${2:-365}
case $days in
    '' | *[!0-9]*) usage ;;
esac
command -v openssl >/dev/null || {
    echo "$0: openssl is not installed" >&2
    exit 1
}

umask 077
for name in ca.pem cert.pem key.pem; do
    if [ -e "$dir/$name" ]; then
        echo "$0: $dir/$name is there already; choose another folder, or remove it" >&2
        exit 1
    fi
done
mkdir -p "$dir"
chmod 700 "$dir"
work=$(mktemp -d "$dir/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

cat >"$work/ca.cnf" <<EOF
[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
CN = distbelief authority
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
EOF
cat >"$work/cert.cnf" <<EOF
[req]
distinguished_name = name
prompt = no
[name]
CN = distbelief
[process]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = DNS:distbelief
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
EOF

key() {
    openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"
}

quietly() {
    "$@" 2>"$work/said" || {
        cat "$work/said" >&2
        exit 1
    }
}

key "$work/ca.key"
key "$work/key.pem"
quietly openssl req -x509 -new -sha256 -key "$work/ca.key" -config "$work/ca.cnf" \
    -days "$((days + 3650))" -out "$work/ca.pem"
quietly openssl req -new -sha256 -key "$work/key.pem" -config "$work/cert.cnf" \
    -out "$work/request.pem"
quietly openssl x509 -req -sha256 -in "$work/request.pem" -CA "$work/ca.pem" \
    -CAkey "$work/ca.key" -set_serial "0x$(openssl rand -hex 16)" -days "$days" \
    -extfile "$work/cert.cnf" -extensions process -out "$work/cert.pem"
chmod 600 "$work/key.pem"
mv "$work/ca.pem" "$work/cert.pem" "$work/key.pem" "$dir/"
echo "made ca.pem, cert.pem and key.pem in $dir, good for $days days"
