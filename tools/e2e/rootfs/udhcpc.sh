#!/bin/sh
# What udhcpc has to do at each event, as any distribution's script does it: address, MTU, and routes. Classless
# static routes replace the router (RFC 3442).
case $1 in
deconfig)
	ip -4 addr flush dev "$interface"
	ip link set "$interface" up
	;;
bound | renew)
	[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
	ip addr replace "$ip/$mask" brd + dev "$interface"
	if [ -n "$staticroutes" ]; then
		set -- $staticroutes
		while [ $# -ge 2 ]; do
			case $2 in
			0.0.0.0) ip route replace "$1" dev "$interface" src "$ip" ;;
			*) ip route replace "$1" via "$2" dev "$interface" ;;
			esac
			shift 2
		done
	else
		for gateway in $router; do
			ip route replace default via "$gateway" dev "$interface"
			break
		done
	fi
	;;
esac
