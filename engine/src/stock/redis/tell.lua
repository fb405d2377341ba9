-- The asker's standing and nothing else: returned units are back in the pool, confirmed ones count
-- towards "sold out". And a look at the pool.
local refusal, x, y = check()
if refusal then return finish(refusal, x, y) end
raise()
return finish()
