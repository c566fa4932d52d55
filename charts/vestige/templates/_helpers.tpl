{{- define "vestige.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "vestige.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "vestige.selectorLabels" -}}
app.kubernetes.io/name: {{ include "vestige.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "vestige.testLabels" -}}
app.kubernetes.io/name: {{ printf "%s-test" (include "vestige.name" .) | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "vestige.labels" -}}
{{ include "vestige.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/part-of: vestige
{{- end }}

{{/* The chart's labels and the user's, of which the user's win: (list $ LABELS). */}}
{{- define "vestige.labelsWith" -}}
{{- merge (deepCopy (index . 1)) (include "vestige.labels" (index . 0) | fromYaml) | toYaml }}
{{- end }}

{{/* The chart's environment variables and the user's, of which the user's win: (list OWN EXTRA). */}}
{{- define "vestige.env" -}}
{{- $names := list }}
{{- range index . 1 }}
{{- $names = append $names .name }}
{{- end }}
{{- $env := list }}
{{- range index . 0 }}
{{- if not (has .name $names) }}
{{- $env = append $env . }}
{{- end }}
{{- end }}
{{- concat $env (index . 1) | toYaml }}
{{- end }}

{{- define "vestige.vestigeEnv" -}}
- name: GATEWAY
  value: {{ .Values.vestige.gateway | quote }}
{{- if eq .Values.vestige.gateway "none" }}
- name: GATEWAY_TOKEN_FILE
  value: /run/vestige/token
{{- end }}
- name: VESTIGE_AUTOPILOT_ENABLED
  value: {{ ternary "1" "0" .Values.vestige.autopilot | quote }}
{{- end }}

{{- define "vestige.bridgeEnv" -}}
- name: VESTIGE_MCP_URL
  value: http://127.0.0.1:3100/mcp
{{- if eq .Values.vestige.gateway "none" }}
- name: VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE
  value: /run/vestige/token
{{- end }}
- name: VESTIGE_AUTH_TOKEN_FILE
  value: /etc/vestige/auth/token
- name: VESTIGE_BRIDGE_STATE_DIR
  value: /var/lib/vestige-bridge
- name: VESTIGE_BRIDGE_DRAIN_SECONDS
  value: {{ .Values.bridge.drainSeconds | quote }}
- name: VESTIGE_BRIDGE_LOG_FORMAT
  value: {{ .Values.bridge.logFormat | quote }}
{{- end }}

{{/* The image that a group of values names: (list $ GROUP). Image tags are git tags: a v and the version. */}}
{{- define "vestige.image" -}}
{{- $image := index (index . 0).Values (index . 1) }}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default (printf "v%s" (index . 0).Chart.AppVersion) $image.tag }}
{{- end }}
{{- end }}

{{- define "vestige.secretName" -}}
{{- default (include "vestige.ownSecretName" .) .Values.auth.existingSecret }}
{{- end }}

{{- define "vestige.ownSecretName" -}}
{{- printf "%s-token" (include "vestige.fullname" .) }}
{{- end }}

{{- define "vestige.secretKey" -}}
{{- ternary .Values.auth.secretKey "token" (ne .Values.auth.existingSecret "") }}
{{- end }}

{{- define "vestige.secretData" -}}
token: {{ .Values.auth.token | trim | b64enc | quote }}
{{- end }}

{{- define "vestige.renderedHashKey" -}}
vestige-bridge/rendered-sha256
{{- end }}

{{/* A quantity of Kubernetes as a number: 5Gi and 5120Mi are the same. */}}
{{- define "vestige.quantity" -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
  "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 }}
{{- $unit := regexFind "[A-Za-z]*$" . }}
{{- mulf (float64 (trimSuffix $unit .)) (default 1.0 (get $units $unit)) | printf "%.0f" }}
{{- end }}

{{- define "vestige.claimName" -}}
{{- default (include "vestige.fullname" .) .Values.persistence.existingClaim }}
{{- end }}

{{/* Refuses what would undo or delete what is in the cluster. Where nothing can be looked up nothing is refused. */}}
{{- define "vestige.validateCluster" -}}
{{- if .Values.auth.existingSecret }}
{{- $used := lookup "v1" "Secret" .Release.Namespace .Values.auth.existingSecret }}
{{- if $used }}
{{- $annotations := default dict $used.metadata.annotations }}
{{- $ours := and (eq (get $annotations "meta.helm.sh/release-name") .Release.Name)
  (eq (get $annotations "meta.helm.sh/release-namespace") .Release.Namespace) }}
{{- if and $ours (ne (get $annotations "helm.sh/resource-policy") "keep") }}
{{- fail (printf "auth.existingSecret names the Secret %s, which belongs to this release: Helm would delete it. Make it your own first: kubectl annotate secret -n %s %s helm.sh/resource-policy=keep" .Values.auth.existingSecret .Release.Namespace .Values.auth.existingSecret) }}
{{- end }}
{{- end }}
{{- else }}
{{- $name := include "vestige.ownSecretName" . }}
{{- $live := lookup "v1" "Secret" .Release.Namespace $name }}
{{- $changed := false }}
{{- if $live }}
{{- $rendered := get (default dict $live.metadata.annotations) (include "vestige.renderedHashKey" .) }}
{{- $changed = ne $rendered (default dict $live.data | toJson | sha256sum) }}
{{- else }}
{{- /* Up to 0.1.0 the Secret had another name, and no hash. */}}
{{- $name = printf "%s-auth" (include "vestige.fullname" .) }}
{{- $live = lookup "v1" "Secret" .Release.Namespace $name }}
{{- if $live }}
{{- $ours := eq (get (default dict $live.metadata.annotations) "meta.helm.sh/release-name") .Release.Name }}
{{- $changed = and $ours (ne (toJson $live.data) (include "vestige.secretData" . | fromYaml | toJson)) }}
{{- end }}
{{- end }}
{{- if $changed }}
{{- fail (printf "The Secret %s in the cluster holds something else than auth.token gave it, and this would undo that change: put the tokens into a Secret of your own under another name, and set auth.existingSecret to it." $name) }}
{{- end }}
{{- end }}
{{- if not .Values.persistence.existingClaim }}
{{- $name := include "vestige.claimName" . }}
{{- $claim := lookup "v1" "PersistentVolumeClaim" .Release.Namespace $name }}
{{- if $claim }}
{{- $size := $claim.spec.resources.requests.storage }}
{{- if ne (include "vestige.quantity" $size) (include "vestige.quantity" .Values.persistence.size) }}
{{- fail (printf "The claim %s has %s, and persistence.size is %s: set persistence.size=%s, or grow the claim first where its StorageClass allows it: kubectl patch pvc -n %s %s -p '{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"%s\"}}}}'" $name $size .Values.persistence.size $size .Release.Namespace $name .Values.persistence.size) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Refuses what could not work, each with the sentence that says the way out. */}}
{{- define "vestige.validate" -}}
{{- if not (or .Values.auth.token .Values.auth.existingSecret) }}
{{- if .Release.IsUpgrade }}
{{- fail "No token: helm upgrade forgets the values of the installation unless it is told to keep them. Add --reset-then-reuse-values, or give auth.token or auth.existingSecret again." }}
{{- end }}
{{- fail "No token: set auth.token to 16 characters or more (--set auth.token=\"$(openssl rand -hex 32)\"), or set auth.existingSecret to the name of a Secret that holds one." }}
{{- end }}
{{- if and .Values.auth.token (not .Values.auth.existingSecret) (lt (len (trim .Values.auth.token)) 16) }}
{{- fail "auth.token is shorter than 16 characters: take one that cannot be guessed, such as the output of openssl rand -hex 32." }}
{{- end }}
{{- if ne (int .Values.replicaCount) 1 }}
{{- fail "replicaCount must be 1: one Vestige process owns the SQLite file, and two pods on it would damage the memory." }}
{{- end }}
{{- if le (int .Values.terminationGracePeriodSeconds) (int .Values.bridge.drainSeconds) }}
{{- fail "terminationGracePeriodSeconds must be larger than bridge.drainSeconds: the bridge drains first, then Vestige ends." }}
{{- end }}
{{- range $object := list "podMonitor" "alerts" "dashboard" }}
{{- if and (index $.Values.metrics $object).enabled (not $.Values.metrics.enabled) }}
{{- fail (printf "metrics.%s.enabled needs metrics.enabled: without it nobody can reach the metrics." $object) }}
{{- end }}
{{- end }}
{{- range $group := list "vestigeImage" "bridgeImage" }}
{{- if contains ":" (index $.Values $group).tag }}
{{- fail (printf "%s.tag is %s, which is no tag: a digest goes to %s.digest." $group (index $.Values $group).tag $group) }}
{{- end }}
{{- end }}
{{- range $label := keys (include "vestige.selectorLabels" . | fromYaml) | sortAlpha }}
{{- if hasKey $.Values.podLabels $label }}
{{- fail (printf "podLabels must not set %s: the Service and the Deployment select the pod by it." $label) }}
{{- end }}
{{- end }}
{{- range .Values.vestige.extraEnv }}
{{- if eq .name "VESTIGE_AUTH_TOKEN" }}
{{- fail "vestige.extraEnv must not set VESTIGE_AUTH_TOKEN: a client's token never goes to Vestige. The bridge has it from auth, and with vestige.gateway=none Vestige gets one of its own at each start." }}
{{- end }}
{{- end }}
{{- include "vestige.validateCluster" . }}
{{- end }}
