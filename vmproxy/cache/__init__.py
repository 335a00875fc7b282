"""The caching proxy on the host: HTTP/1.1 in and out, RFC 9111 by hishel, a store on disk, never an open proxy.

::

    message   heads and bodies of HTTP/1.1, strictly (PURE)
    policy    what may be kept, what may be given, what is asked again (PURE)
    guard     who may ask, and for what (PURE)
    limits    the settings, in one frozen object (PURE)
    entry     one entry as a file's bytes
    draft     one that is being written
    place     their directory, and its lock
    store     entries on disk: one file each, LRU, checked
    stats     what was saved, per host
    wire      one connection as bytes: read, write, deadlines
    origin    connections to origins, to addresses that were checked
    flight    one download that several clients read
    request   what a request to a proxy asks for (PURE)
    reply     answers to a client
    exchange  one request and its answer
    server    the proxy itself
    control   status and purge of a running proxy, through a socket in its directory
    engines   which of them is the proxy: this one, or a squid
    run       from the wishes to the end of the process
"""
