-- Raises the asker's granted units from 11 to at most 12, 13 of which are asked for now: a fair
-- share for 14 nodes (0: all that there is), at most 15 at once; beyond what is asked for, only of
-- what nobody else waits for. Where granted is not 11, an answer was lost: nothing is granted, and
-- the asker sees what was. What it needs and the pool does not have is noted as wanted.
local refusal, x, y = check()
if refusal then return finish(refusal, x, y) end
raise()
local from, up_to, need, nodes, max =
  tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
local own = journals[journal]

local function share(free)
  local fair = nodes == 0 and free or math.floor(free / (2 * nodes))
  return math.min(math.max(math.min(fair, max), 1), free)
end

if pool.open and own.g == from then
  local free, asked = size(), math.max(0, up_to - from)
  need = math.min(need, asked)
  local spare = math.max(0, free - elsewhere(wants) - pool.wwanted)
  own.g = own.g + math.max(math.min(asked, share(spare)), math.min(need, share(free)))
  own.w = math.max(0, need - free)
end
return finish(nil, 0, 0, true)
