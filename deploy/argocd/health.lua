-- How Argo CD judges an EtcdCluster: resource.customizations.health.quorate.dev_EtcdCluster in the ConfigMap argocd-cm.
local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Waiting for the operator"}
end
local found = {}
for _, condition in ipairs(status.conditions or {}) do
  found[condition.type] = condition
end
local function is(type)
  return found[type] ~= nil and found[type].status == "True"
end
if is("Paused") then
  return {status = "Suspended", message = found.Paused.message}
end
if is("Stalled") then
  return {status = "Degraded", message = found.Stalled.message}
end
if is("Reconciling") then
  return {status = "Progressing", message = found.Reconciling.message}
end
if is("Ready") then
  return {status = "Healthy", message = found.Ready.message}
end
if found.Ready ~= nil then
  return {status = "Degraded", message = found.Ready.message}
end
return {status = "Progressing", message = "Waiting for the operator"}
