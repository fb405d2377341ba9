-- Makes the pool of a new item, once, where its epoch (1, this server) was recorded before.
-- ARGV 11 added, 12 withdrawn, 13 listed
if pool.epoch ~= 0 or asker.epoch ~= 1 or asker.server ~= server then return finish('lost') end
pool = {
  epoch = 1, server = server, open = true, listed = ARGV[13],
  added = tonumber(ARGV[11]), withdrawn = tonumber(ARGV[12]),
  wkey = '', wwanted = 0, gen = 1,
}
journals[journal] = {
  e = 1, i = asker.i, g = asker.a, a = asker.a, r = asker.r, c = asker.c, u = asker.u, w = 0,
}
return finish()
