"""What Redis does in one atomic step: the operations of a SessionStore, in Lua.

A session is four keys of one hash slot:

    memory   16 bytes of the lease that wrote it, then the session's value; lives for the time to live
    trail    a list of marks; lives as long
    grave    empty; outlives memory by the time of tombstones
    lease    16 bytes of whoever holds it; lives for the lease's time

Every script may be run twice by one caller, since a reply can be lost on the way back: the second run finds the
caller's own token and says what the first one said. All arguments are given; the scripts read no clock.
"""

from __future__ import annotations

ACQUIRE = """
local holder = redis.call('GET', KEYS[4])
if holder and holder ~= ARGV[1] then return {'busy'} end
local memory = redis.call('GET', KEYS[1])
if memory then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    redis.call('PEXPIRE', KEYS[2], ARGV[3])
    redis.call('PEXPIRE', KEYS[3], ARGV[4])
elseif redis.call('EXISTS', KEYS[3]) == 1 then
    return {'expired'}
end
redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2])
return {'ok', memory}
"""
"""ARGV: token, lease, time to live and the grave's time in milliseconds."""

RENEW = """
if redis.call('GET', KEYS[4]) ~= ARGV[1] then return {'lost'} end
redis.call('PEXPIRE', KEYS[4], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return {'ok'}
"""
"""ARGV: as for ACQUIRE."""

COMMIT = """
local written_by = redis.call('GETRANGE', KEYS[1], 0, 15)
if written_by == ARGV[1] then return {'ok'} end
if redis.call('GET', KEYS[4]) ~= ARGV[1] then return {'lost'} end
if written_by == '' then redis.call('DEL', KEYS[2]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[3], '', 'PX', ARGV[4])
for i = 6, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
redis.call('LTRIM', KEYS[2], -ARGV[5], -1)
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('DEL', KEYS[4])
return {'ok'}
"""
"""ARGV: token, memory, time to live, the grave's time, longest trail, then the marks."""

RELEASE = """
if redis.call('GET', KEYS[4]) == ARGV[1] then redis.call('DEL', KEYS[4]) end
return {'ok'}
"""
"""ARGV: token."""

PEEK = """
local memory = redis.call('GET', KEYS[1])
if not memory then
    return {redis.call('EXISTS', KEYS[3]) == 1 and 'expired' or 'unknown'}
end
local trail = ARGV[1] == '1' and redis.call('LRANGE', KEYS[2], 0, -1) or {}
return {'ok', memory, redis.call('PTTL', KEYS[1]), trail}
"""
"""ARGV: 1 where the trail is asked for."""

DELETE = """
if redis.call('EXISTS', KEYS[4]) == 1 then return {'busy'} end
local memories = redis.call('DEL', KEYS[1])
local graves = redis.call('DEL', KEYS[3])
redis.call('DEL', KEYS[2])
return {memories + graves > 0 and 'ok' or 'unknown', memories}
"""
