# Supervises one server for tests. It is preceded by the functions prepare, serve
# (ends in exec) and the signal that ends the server at once, and gets the folder as $1.
# Answers "done" to its start and to each order that it reads from stdin; at the end
# of stdin, which the kernel closes when the test process dies in whatever way, it
# ends the server and removes the folder.
folder=$1
pid=

start() {
	(serve) </dev/null >>"$folder/log" 2>&1 &
	pid=$!
}
stop() {
	[ -n "$pid" ] || return 0
	# shellcheck disable=SC2154 # set by the script that this one follows
	kill "-$signal" "$pid" 2>/dev/null
	wait "$pid" 2>/dev/null
	pid=
}
alive() { [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }

if ! prepare </dev/null >"$folder/prepare.log" 2>&1; then
	tail -c 2000 "$folder/prepare.log"
	cd / && rm -rf "$folder"
	exit 1
fi
start
echo done
while read -r order; do
	case $order in
	start | stop) "$order"; echo done ;;
	alive) if alive; then echo done; else tail -c 1500 "$folder/log" | tr '\n' ' '; echo; fi ;;
	esac
done
stop
cd / && rm -rf "$folder"
exit 0
