-- From the home node: the units added so far are now 11.
local refusal, x, y = check()
if refusal then return finish(refusal, x, y) end
raise()
raise_added(tonumber(ARGV[11]))
return finish()
