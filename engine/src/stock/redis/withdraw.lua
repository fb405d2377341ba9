-- From the home node: raises the withdrawn units from 11 to at most 12, for the request with key
-- 13. What the pool does not have is noted as wanted.
local refusal, x, y = check()
if refusal then return finish(refusal, x, y) end
raise()
local from, up_to = tonumber(ARGV[11]), tonumber(ARGV[12])
if pool.open and pool.withdrawn == from then
  local free, asked = size(), math.max(0, up_to - from)
  local had = math.min(asked, free)
  if had > 0 then
    pool.withdrawn = pool.withdrawn + had
    pool.wkey = ARGV[13]
  end
  pool.wwanted = math.max(0, asked - free)
end
return finish(nil, 0, 0, true)
