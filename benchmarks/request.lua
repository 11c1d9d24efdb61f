-- For wrk: one request with a body, made once. Arguments after "--": method, content type, file with the body.
function init(args)
  local file = assert(io.open(args[3], "rb"))
  wrk.method = args[1]
  wrk.headers["Content-Type"] = args[2]
  wrk.body = file:read("*a")
  file:close()
end
