"""What Redis does in one atomic step: the operations of a SessionStore, in Lua.

A session is four keys:

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
local function written_by(i) return redis.call('GETRANGE', KEYS[i + 1], 0, 15) end
local writings, lost, place = {}, nil, 4
for i = 0, #KEYS - 1, 4 do
    local writing = {i, ARGV[place], ARGV[place + 1], place + 2, place + 2 + ARGV[place + 2]}
    if written_by(i) == writing[2] then return {'ok'} end
    if redis.call('GET', KEYS[i + 4]) ~= writing[2] then lost = lost or i / 4 end
    writings[#writings + 1] = writing
    place = writing[5] + 1
end
if lost then return {'lost', lost} end
for _, writing in ipairs(writings) do
    local i = writing[1]
    if written_by(i) == '' then redis.call('DEL', KEYS[i + 2]) end
    redis.call('SET', KEYS[i + 1], writing[3], 'PX', ARGV[1])
    redis.call('SET', KEYS[i + 3], '', 'PX', ARGV[2])
    for mark = writing[4] + 1, writing[5] do redis.call('RPUSH', KEYS[i + 2], ARGV[mark]) end
    redis.call('LTRIM', KEYS[i + 2], -ARGV[3], -1)
    redis.call('PEXPIRE', KEYS[i + 2], ARGV[1])
    redis.call('DEL', KEYS[i + 4])
end
return {'ok'}
"""
"""KEYS: four for each session.

ARGV: time to live, the grave's time, longest trail; then for each session its token, its memory, how many marks there
are, and those. Where any session holds what this call would write, a first run has written them all. `lost` comes with
the place of the first session that was, from 0.
"""

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
