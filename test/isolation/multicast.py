"""Makes this host route multicast from one interface to another until it is ended, as a multicast routing
daemon would: multicast(7), the MRT_ and MRT6_ options of <linux/mroute.h> and <linux/mroute6.h>.

usage: multicast.py IN OUT SOURCE4 GROUP4 SOURCE6 GROUP6
"""
import signal
import socket
import struct
import sys

INIT, ADD_VIF, ADD_MFC = 200, 202, 204
USE_IFINDEX = 8


def route4(interfaces, source, group):
    router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)
    router.setsockopt(socket.IPPROTO_IP, INIT, struct.pack("i", 1))
    for number, name in enumerate(interfaces):
        index = socket.if_nametoindex(name)
        vif = struct.pack("=HBBIi4s", number, USE_IFINDEX, 1, 0, index, bytes(4))
        router.setsockopt(socket.IPPROTO_IP, ADD_VIF, vif)
    ttls = bytes([0, 1]) + bytes(30)
    addresses = socket.inet_aton(source) + socket.inet_aton(group)
    entry = struct.pack("=8sH32sxxIIIi", addresses, 0, ttls, 0, 0, 0, 0)
    router.setsockopt(socket.IPPROTO_IP, ADD_MFC, entry)
    return router


def route6(interfaces, source, group):
    router = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    router.setsockopt(socket.IPPROTO_IPV6, INIT, struct.pack("i", 1))
    for number, name in enumerate(interfaces):
        vif = struct.pack("=HBBHxxI", number, 0, 1, socket.if_nametoindex(name), 0)
        router.setsockopt(socket.IPPROTO_IPV6, ADD_VIF, vif)

    def endpoint(address):
        return struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, address), 0)

    out = (1 << 1).to_bytes(32, sys.byteorder)
    router.setsockopt(
        socket.IPPROTO_IPV6, ADD_MFC, endpoint(source) + endpoint(group) + struct.pack("=Hxx", 0) + out
    )
    return router


incoming, outgoing, source4, group4, source6, group6 = sys.argv[1:]
routers = [route4([incoming, outgoing], source4, group4), route6([incoming, outgoing], source6, group6)]
print("ready", flush=True)
signal.pause()
