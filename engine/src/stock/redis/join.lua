-- "This is my incarnation, and what I can prove." Fences older incarnations, turns old copies
-- away, begins an epoch where the pool has lost something, and opens it once all have reported.
-- ARGV 11 bump_above, 12 whether the home node asks, 13 added, 14 withdrawn, 15 listed
local bump_above, is_home = tonumber(ARGV[11]), ARGV[12] == '1'

-- Everything that the pool says is forgotten; what journals proved stays.
local function begin()
  for _, entry in pairs(journals) do entry.e, entry.g, entry.w = 0, 0, 0 end
  -- So the asker must report, even where the home node's list does not have it.
  if asker.a > 0 or journals[journal] then
    local own = mine()
    own.i = asker.i
    own.a, own.r = math.max(own.a, asker.a), math.max(own.r, asker.r)
    own.c, own.u = math.max(own.c, asker.c), math.max(own.u, asker.u)
  end
  pool = {
    epoch = math.max(pool.epoch, bump_above, asker.epoch) + 1, server = server, open = false,
    listed = '-', added = 0, withdrawn = 0, wkey = '', wwanted = 0, gen = pool.gen + 1,
  }
  return finish('epoch')
end

local function has_every_report()
  if pool.listed == '-' then return false end
  for id in string.gmatch(pool.listed, '%x+') do
    if not has_joined(id) then return false end
  end
  for id, entry in pairs(journals) do
    if entry.a > 0 and not has_joined(id) then return false end
  end
  return true
end

local known = journals[journal]
if known then
  if asker.i < known.i then return finish('fenced', known.i) end
  if known.a > asker.a or known.r > asker.r then return finish('old-copy', known.a, known.r) end
end
if is_lost() or pool.epoch <= bump_above then return begin() end
if asker.epoch ~= pool.epoch or asker.server ~= pool.server then return finish('epoch') end
local granted = has_joined(journal) and known.g or 0
if pool.open and (asker.a > granted or (is_home and tonumber(ARGV[14]) > pool.withdrawn)) then
  return begin()
end

local own = mine()
own.e, own.i, own.w = pool.epoch, asker.i, 0
own.g = pool.open and granted or math.max(granted, asker.a)
raise()
if is_home then
  raise_added(tonumber(ARGV[13]))
  pool.withdrawn = math.max(pool.withdrawn, tonumber(ARGV[14]))
  pool.wwanted = 0
  if ARGV[15] ~= '-' then pool.listed = ARGV[15] end
end
if not pool.open and has_every_report() then
  pool.open = true
  pool.gen = pool.gen + 1
end
return finish()
