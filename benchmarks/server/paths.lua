-- Each request has a query of its own, so that no two heads are alike.
local number = 0

function request()
   number = number + 1
   return wrk.format("GET", "/?number=" .. number)
end
