-- What all scripts of an item's pool share: it is put in front of each of them.
--
-- The rules are those of pool.rs, in the same order: read everything, refuse or change, look
-- again. One key, so that the whole item lies in one hash slot; no clock and nothing random.
--
--   KEYS[1]  the item's hash
--   ARGV     1 news channel, 2 the item's name, 3 journal, 4 incarnation, 5 epoch, 6 its server,
--            7 accepted, 8 returned, 9 confirmed, 10 unconfirmed; from 11 on the script's own
--   fields   epoch, server, open, listed, added, withdrawn, wkey, wwanted, gen; and of a journal J
--            e:J epoch that it joined, i:J incarnation, g:J granted, a:J accepted, r:J returned,
--            c:J confirmed, u:J unconfirmed, w:J wanted
--
-- All numbers are below 2^53: Lua has none but doubles.

local key, channel, name, journal = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local asker = {
  i = tonumber(ARGV[4]), epoch = tonumber(ARGV[5]), server = ARGV[6],
  a = tonumber(ARGV[7]), r = tonumber(ARGV[8]), c = tonumber(ARGV[9]), u = tonumber(ARGV[10]),
}

-- Who this server is. A restart changes the one, a promotion the other.
local function identity()
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  local replication = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
  return string.sub(redis.sha1hex(run .. ':' .. replication), 1, 32)
end
local server = identity()

local old = {}
local flat = redis.call('HGETALL', key)
for n = 1, #flat, 2 do old[flat[n]] = flat[n + 1] end

local function number(field) return tonumber(old[field] or '0') end

local pool = {
  epoch = number('epoch'), server = old.server or '', open = old.open == '1',
  -- '-': the home node has not said yet; else the journals, each with a comma behind it.
  listed = old.listed or '-',
  added = number('added'), withdrawn = number('withdrawn'),
  wkey = old.wkey or '', wwanted = number('wwanted'), gen = number('gen'),
}
local journals = {}
for field in pairs(old) do
  local id = string.match(field, '^e:(%x+)$')
  if id then
    journals[id] = {
      e = number('e:' .. id), i = number('i:' .. id), g = number('g:' .. id),
      a = number('a:' .. id), r = number('r:' .. id), c = number('c:' .. id),
      u = number('u:' .. id), w = number('w:' .. id),
    }
  end
end

-- The asker's entry; made where there is none.
local function mine()
  local own = journals[journal]
  if not own then
    own = { e = 0, i = 0, g = 0, a = 0, r = 0, c = 0, u = 0, w = 0 }
    journals[journal] = own
  end
  return own
end

local function has_joined(id)
  local entry = journals[id]
  return entry ~= nil and entry.e == pool.epoch
end

local function sum(of)
  local total = 0
  for id, entry in pairs(journals) do
    if entry.e == pool.epoch then total = total + of(entry, id) end
  end
  return total
end

local function sold(entry) return math.max(0, entry.c - entry.u) end
local function wants(entry) return entry.w end
local function total() return math.max(0, pool.added - pool.withdrawn) end

local function size()
  if not pool.open then return 0 end
  return math.max(0, total() + sum(function(e) return e.r - e.g end))
end

-- Of all others in this epoch.
local function elsewhere(of)
  return sum(function(entry, id) return id ~= journal and of(entry) or 0 end)
end

local function is_sold_out()
  return pool.open and total() > 0 and sum(sold) == total()
end

local function is_lost() return pool.epoch == 0 or pool.server ~= server end

-- Why an ask other than a join may not change anything; nothing, where it may.
local function check()
  if is_lost() then return 'lost' end
  if asker.epoch ~= pool.epoch or asker.server ~= pool.server then return 'epoch' end
  if not has_joined(journal) then return 'not-joined' end
  local own = journals[journal]
  if asker.i < own.i then return 'fenced', own.i end
  if asker.i > own.i then return 'not-joined' end
  -- It granted them, and has forgotten it.
  if asker.a > own.g then return 'lost' end
end

-- Raises what is known of the asker, who has joined.
local function raise()
  local own = journals[journal]
  local unconfirmed = own.u
  own.a = math.max(own.a, asker.a)
  own.r = math.max(own.r, math.min(asker.r, own.g))
  own.c = math.max(own.c, asker.c)
  own.u = math.max(own.u, asker.u)
  if own.u > unconfirmed then pool.gen = pool.gen + 1 end
end

local function raise_added(added)
  if added > pool.added then
    pool.added = added
    pool.gen = pool.gen + 1
  end
end

local function look()
  return { size = size(), gen = pool.gen, sold_out = is_sold_out() }
end
local before = look()

local function text(value)
  if type(value) == 'number' then return string.format('%.0f', value) end
  if type(value) == 'boolean' then return value and '1' or '0' end
  return value
end

-- Writes the fields that have changed.
local function save()
  local changes = {}
  local function put(field, value)
    value = text(value)
    if old[field] ~= value then
      changes[#changes + 1] = field
      changes[#changes + 1] = value
    end
  end
  for field, value in pairs(pool) do put(field, value) end
  for id, entry in pairs(journals) do
    for field, value in pairs(entry) do put(field .. ':' .. id, value) end
  end
  if #changes > 0 then redis.call('HSET', key, unpack(changes)) end
end

-- One word says whom it concerns: all, those that wait for units, or those that hold some.
local function tell_news(did_want)
  local now = look()
  local own = has_joined(journal) and journals[journal].w or 0
  local change
  if now.gen > before.gen or (now.sold_out and not before.sold_out) then
    change = 'turned'
  elseif now.size > before.size and sum(wants) + pool.wwanted > 0 then
    change = 'freed'
  elseif did_want and own + pool.wwanted > 0 and now.size == 0 then
    change = 'wanted'
  end
  if change then redis.call('PUBLISH', channel, change .. ' ' .. name) end
end

-- Saves, tells the news, and answers: the refusal ('' for none) with its two numbers, then what
-- the asker sees of the pool.
local function finish(refusal, x, y, did_want)
  if pool.epoch == 0 then
    return { refusal, 0, 0, 0, server, 0, 0, 0, 0, '', 0, 0, 0, 0, 0, 0, 0 }
  end
  save()
  tell_news(did_want)
  local own = has_joined(journal) and journals[journal] or { g = 0, r = 0 }
  return {
    refusal or '', x or 0, y or 0,
    pool.epoch, pool.server, pool.open and 1 or 0, sum(function() return 1 end),
    pool.added, pool.withdrawn, pool.wkey, size(), own.g, own.r, elsewhere(sold),
    is_sold_out() and 1 or 0, pool.gen,
    elsewhere(wants) + pool.wwanted,
  }
end
