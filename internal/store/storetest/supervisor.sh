# Supervises one PostgreSQL server for tests: binaries folder port.
# Answers "done" on stdout to the start and to each order read from stdin; at
# the end of stdin it stops the server and removes the folder.
bin=$1 folder=$2 port=$3

start() {
	"$bin/pg_ctl" start -w -t 60 -s -D "$folder/data" -l "$folder/log" -o "-c listen_addresses=127.0.0.1 -c port=$port \
		-c unix_socket_directories=$folder -c fsync=off -c full_page_writes=off -c max_connections=200 -c lc_messages=C" </dev/null >&2
}
stop() {
	"$bin/pg_ctl" stop -w -t 60 -s -m immediate -D "$folder/data" </dev/null >&2
}

if ! { "$bin/initdb" -D "$folder/data" -U super --auth=scram-sha-256 --pwfile="$folder/password" \
	--no-sync -E UTF8 --locale=C.UTF-8 </dev/null >"$folder/initdb.log" 2>&1 && rm "$folder/password" && start 2>"$folder/start.log"; }; then
	cat "$folder/initdb.log" "$folder/start.log" "$folder/log" 2>/dev/null
	cd / && rm -rf "$folder"
	exit 1
fi
echo done
while read -r order; do
	case $order in
	start | stop) if "$order" 2>"$folder/order.log"; then echo done; else tr '\n' ' ' <"$folder/order.log" && echo; fi ;;
	esac
done
[ -f "$folder/data/postmaster.pid" ] && stop 2>/dev/null
cd / && rm -rf "$folder"
exit 0
