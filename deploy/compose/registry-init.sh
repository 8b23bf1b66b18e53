#!/bin/sh
# Once, before the services start: the keys they show each other and their clients, the base model, the embedded release.
# Safe to run again: what is there stays.
set -eu
for name in internal api admin; do
  file=/keys/$name.key
  if [ ! -s "$file" ]; then
    (umask 077 && python -c 'import secrets; print(secrets.token_urlsafe(32))' >"$file.new" && mv "$file.new" "$file")
    echo "made $file"
  fi
done
# Prometheus runs as another user of the same group; it lists the vLLM servers with the internal key.
(umask 027 && cp /keys/internal.key /keys/prometheus.key.new && chmod 0640 /keys/prometheus.key.new)
mv -f /keys/prometheus.key.new /keys/prometheus.key
exec python -m acemath_training.embedded.publish --registry-root /registry --base-wheel-dir /opt/base-model
