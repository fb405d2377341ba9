-- Raises the asker's granted units from 11 to at most 12: a fair share for 13 nodes (0: all that
-- there is), at most 14 at once. Where granted is not 11, an answer was lost: nothing is granted,
-- and the asker sees what was. What the pool does not have is noted as wanted.
local refusal, x, y = check()
if refusal then return finish(refusal, x, y) end
raise()
local from, up_to, nodes, max =
  tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
local own = journals[journal]
if pool.open and own.g == from then
  local free, asked = size(), math.max(0, up_to - from)
  local share = nodes == 0 and free or math.floor(free / (2 * nodes))
  share = math.min(math.max(math.min(share, max), 1), free)
  own.g = own.g + math.min(asked, share)
  own.w = math.max(0, asked - free)
end
return finish(nil, 0, 0, true)
