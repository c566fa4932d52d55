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

{{/* The chart's labels and the user's, which override them: (list $ LABELS). */}}
{{- define "vestige.labelsWith" -}}
{{- merge (deepCopy (index . 1)) (include "vestige.labels" (index . 0) | fromYaml) | toYaml }}
{{- end }}

{{/* The chart's environment variables and the user's, which override them: (list OWN EXTRA). */}}
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
{{- if include "vestige.hasTokens" . }}
- name: VESTIGE_AUTH_TOKEN_FILE
  value: /etc/vestige/auth/{{ include "vestige.tokenFile" . }}
{{- end }}
{{- with .Values.auth.oauth }}
{{- if .issuer }}
- name: VESTIGE_BRIDGE_OAUTH_ISSUER
  value: {{ .issuer | quote }}
- name: VESTIGE_BRIDGE_PUBLIC_URL
  value: {{ .publicUrl | quote }}
- name: VESTIGE_BRIDGE_OAUTH_SCOPES
  value: {{ .scopes | quote }}
- name: VESTIGE_BRIDGE_OAUTH_AUDIENCE
  value: {{ .audience | quote }}
- name: VESTIGE_BRIDGE_OAUTH_JWKS_URL
  value: {{ .jwksUrl | quote }}
{{- end }}
{{- end }}
{{- if .Values.audit.enabled }}
- name: VESTIGE_BRIDGE_AUDIT_LOG
  value: "-"
- name: VESTIGE_BRIDGE_AUDIT_REQUIRED
  value: {{ .Values.audit.required | quote }}
{{- end }}
- name: VESTIGE_BRIDGE_STATE_DIR
  value: /var/lib/vestige-bridge
{{- if .Values.backup.enabled }}
- name: VESTIGE_BRIDGE_BACKUP_STATUS_FILE
  value: /run/vestige-backup/status.json
{{- end }}
{{- if not .Values.metrics.enabled }}
- name: VESTIGE_BRIDGE_METRICS_PORT
  value: "off"
{{- end }}
- name: VESTIGE_BRIDGE_DRAIN_SECONDS
  value: {{ .Values.bridge.drainSeconds | quote }}
- name: VESTIGE_BRIDGE_LOG_FORMAT
  value: {{ .Values.bridge.logFormat | quote }}
{{- end }}

{{/* Whether the bridge has tokens of its own, beside those of an identity provider: not empty if it has. */}}
{{- define "vestige.hasTokens" -}}
{{- if or .Values.auth.token .Values.auth.tokens .Values.auth.existingSecret }}true{{ end }}
{{- end }}

{{/* The image of a group of values: (list $ GROUP). Image tags are git tags: v and the version. */}}
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
{{- if .Values.auth.existingSecret -}}
{{ .Values.auth.secretKey }}
{{- else -}}
{{ ternary "tokens.toml" "token" (gt (len .Values.auth.tokens) 0) }}
{{- end }}
{{- end }}

{{/* The name of the token file in the container; the bridge reads its format from the name. */}}
{{- define "vestige.tokenFile" -}}
{{- ternary "tokens.toml" "token" (hasSuffix ".toml" (include "vestige.secretKey" .)) }}
{{- end }}

{{- define "vestige.secretData" -}}
{{- if .Values.auth.tokens -}}
tokens.toml: {{ include "vestige.tokensToml" . | trim | printf "%s\n" | b64enc | quote }}
{{- else -}}
token: {{ .Values.auth.token | trim | b64enc | quote }}
{{- end }}
{{- end }}

{{/* auth.tokens as TOML. A JSON string is a valid TOML string. */}}
{{- define "vestige.tokensToml" -}}
{{- range .Values.auth.tokens -}}
[[token]]
name = {{ toJson .name }}
{{- with .token }}
token = {{ toJson (trim .) }}
{{- end }}
{{- with .sha256 }}
sha256 = {{ toJson . }}
{{- end }}
{{- with .expires }}
expires = {{ . }}
{{- end }}
{{- if hasKey . "read_only" }}
read_only = {{ .read_only }}
{{- end }}
{{- if hasKey . "tools" }}
tools = {{ toJson .tools }}
{{- end }}
{{- if hasKey . "resources" }}
resources = {{ .resources }}
{{- end }}
{{- with .max_in_flight }}
max_in_flight = {{ int64 . }}
{{- end }}
{{- with .rate }}
rate = {{ int64 . }}
{{- end }}

{{ end }}
{{- end }}

{{- define "vestige.renderedHashKey" -}}
vestige-bridge/rendered-sha256
{{- end }}

{{/* A Kubernetes quantity as a number: 5Gi and 5120Mi are equal. */}}
{{- define "vestige.quantity" -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
  "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 }}
{{- $unit := regexFind "[A-Za-z]*$" . }}
{{- mulf (float64 (trimSuffix $unit .)) (default 1.0 (get $units $unit)) | printf "%.0f" }}
{{- end }}

{{- define "vestige.claimName" -}}
{{- default (include "vestige.fullname" .) .Values.persistence.existingClaim }}
{{- end }}

{{/* Fails if the release would overwrite or delete objects in the cluster. Without a cluster to look up, it never fails. */}}
{{- define "vestige.validateCluster" -}}
{{- if .Values.auth.existingSecret }}
{{- $used := lookup "v1" "Secret" .Release.Namespace .Values.auth.existingSecret }}
{{- if $used }}
{{- $annotations := default dict $used.metadata.annotations }}
{{- $ours := and (eq (get $annotations "meta.helm.sh/release-name") .Release.Name)
  (eq (get $annotations "meta.helm.sh/release-namespace") .Release.Namespace) }}
{{- if and $ours (ne (get $annotations "helm.sh/resource-policy") "keep") }}
{{- fail (printf "auth.existingSecret is the Secret %s, which belongs to this release, so Helm would delete it. Make it your own first: kubectl annotate secret -n %s %s helm.sh/resource-policy=keep" .Values.auth.existingSecret .Release.Namespace .Values.auth.existingSecret) }}
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
{{- $instead := ternary ", and auth.tokens to nothing (--set-json 'auth.tokens=[]')" "" (gt (len .Values.auth.tokens) 0) }}
{{- fail (printf "The Secret %s in the cluster was changed by hand, and this release would overwrite that change. Put the tokens into a Secret of your own with another name, and set auth.existingSecret to it%s." $name $instead) }}
{{- end }}
{{- end }}
{{- if not .Values.persistence.existingClaim }}
{{- $name := include "vestige.claimName" . }}
{{- $claim := lookup "v1" "PersistentVolumeClaim" .Release.Namespace $name }}
{{- if $claim }}
{{- $size := $claim.spec.resources.requests.storage }}
{{- if ne (include "vestige.quantity" $size) (include "vestige.quantity" .Values.persistence.size) }}
{{- fail (printf "The claim %s has the size %s, but persistence.size is %s: set persistence.size=%s, or enlarge the claim first, if its StorageClass allows it: kubectl patch pvc -n %s %s -p '{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"%s\"}}}}'" $name $size .Values.persistence.size $size .Release.Namespace $name .Values.persistence.size) }}
{{- end }}
{{- $mode := join "," $claim.spec.accessModes }}
{{- if ne $mode .Values.persistence.accessMode }}
{{- fail (printf "The claim %s has the access mode %s, which cannot be changed: set persistence.accessMode=%s, or make a backup, delete the claim, install and restore." $name $mode $mode) }}
{{- end }}
{{- $class := $claim.spec.storageClassName | default "" }}
{{- $wanted := ternary "" .Values.persistence.storageClass (eq .Values.persistence.storageClass "-") }}
{{- if and .Values.persistence.storageClass (ne $wanted $class) }}
{{- fail (printf "The claim %s has the StorageClass %q, which cannot be changed: set persistence.storageClass=%s, or make a backup, delete the claim, install and restore." $name $class ($class | default "-")) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fails if auth is missing or ambiguous. No message quotes a token, or a value that could be one. */}}
{{- define "vestige.validateAuth" -}}
{{- $auth := .Values.auth }}
{{- if not (or (include "vestige.hasTokens" .) $auth.oauth.issuer) }}
{{- if .Release.IsUpgrade }}
{{- fail "No token: without --reset-then-reuse-values helm upgrade discards the values of the installation. Add that option, or set auth.token, auth.tokens, auth.existingSecret or auth.oauth again." }}
{{- end }}
{{- fail "No token: set auth.token to 16 characters or more (--set auth.token=\"$(openssl rand -hex 32)\"), auth.tokens to a list of tokens, auth.existingSecret to the name of a Secret with a token, or auth.oauth.issuer to your identity provider." }}
{{- end }}
{{- include "vestige.validateOauth" . }}
{{- if and $auth.tokens $auth.existingSecret }}
{{- fail "auth.tokens and auth.existingSecret are both set, but only one of them is allowed: add --set-json 'auth.tokens=[]' or --set auth.existingSecret=." }}
{{- end }}
{{- if and $auth.tokens $auth.token }}
{{- fail "auth.tokens and auth.token are both set, but only one of them is allowed: add --set auth.token= or --set-json 'auth.tokens=[]'." }}
{{- end }}
{{- if and $auth.token (not $auth.existingSecret) (lt (len (trim $auth.token)) 16) }}
{{- fail "auth.token is shorter than 16 characters: use one that cannot be guessed, such as the output of openssl rand -hex 32." }}
{{- end }}
{{- $names := list }}
{{- range .Values.bridge.extraEnv }}
{{- $off := and (not .valueFrom) (has (lower (trim (default "" .value))) (list "" "false" "0" "no" "off")) }}
{{- $names = ternary $names (append $names .name) (and $off (eq .name "VESTIGE_ALLOW_ANONYMOUS")) }}
{{- end }}
{{- range $name := list "VESTIGE_AUTH_TOKEN" "VESTIGE_ALLOW_ANONYMOUS" }}
{{- if and (has $name $names) (not (has "VESTIGE_AUTH_TOKEN_FILE" $names)) }}
{{- fail (printf "bridge.extraEnv must not set %s: the bridge gets its tokens from auth, and accepts only one source of tokens." $name) }}
{{- end }}
{{- end }}
{{- include "vestige.validateTokens" . }}
{{- end }}

{{/* Fails for incomplete OAuth values. */}}
{{- define "vestige.validateOauth" -}}
{{- $oauth := .Values.auth.oauth }}
{{- range $name := list "publicUrl" "scopes" }}
{{- if and $oauth.issuer (not (get $oauth $name)) }}
{{- fail (printf "auth.oauth.issuer needs auth.oauth.%s." $name) }}
{{- end }}
{{- end }}
{{- range $name := list "publicUrl" "scopes" "audience" "jwksUrl" }}
{{- if and (get $oauth $name) (not $oauth.issuer) }}
{{- fail (printf "auth.oauth.%s is set without auth.oauth.issuer; set both, or neither." $name) }}
{{- end }}
{{- end }}
{{- $scopes := list }}
{{- range splitList ";" $oauth.scopes }}
{{- $scope := regexReplaceAll " *=[^=]*$" . "" | trim }}
{{- if has $scope $scopes }}
{{- fail (printf "auth.oauth.scopes has the scope %s twice." $scope) }}
{{- end }}
{{- $scopes = ternary (append $scopes $scope) $scopes (ne $scope "") }}
{{- end }}
{{- $tokens := list .Values.auth.token }}
{{- range .Values.auth.tokens }}
{{- $tokens = append $tokens .token }}
{{- end }}
{{- range $tokens }}
{{- if and $oauth.issuer (regexMatch "^e[yw][^.]*(\\.[^.]*){2}((\\.[^.]*){2})?$" (trim (default "" .))) }}
{{- fail "A token of auth has the form of a JWT, and those are for auth.oauth.issuer: take another one, such as the output of openssl rand -hex 32." }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fails for entries that the bridge would reject at its start, when the previous pod has already stopped. */}}
{{- define "vestige.validateTokens" -}}
{{- $owners := dict }}
{{- $rights := dict }}
{{- range $index, $entry := .Values.auth.tokens }}
{{- $where := printf "auth.tokens[%d] (%s)" $index $entry.name }}
{{- $token := trim (default "" $entry.token) }}
{{- $sha256 := default "" $entry.sha256 }}
{{- if eq (empty $token) (empty $sha256) }}
{{- fail (printf "%s needs either token or sha256." $where) }}
{{- end }}
{{- if and $token (not (regexMatch "^[\\x21-\\x7e]+$" $token)) }}
{{- fail (printf "token of %s must be visible ASCII without spaces." $where) }}
{{- end }}
{{- if and $token (lt (len $token) 16) }}
{{- fail (printf "token of %s is shorter than 16 characters: use one that cannot be guessed, such as the output of vestige-bridge token new." $where) }}
{{- end }}
{{- if and $sha256 (not (regexMatch "^[0-9A-Fa-f]{64}$" $sha256)) }}
{{- fail (printf "sha256 of %s must be the 64 hexadecimal digits of the token's SHA-256." $where) }}
{{- end }}
{{- $expires := 0 }}
{{- with $entry.expires }}
{{- $expires = toDate "2006-01-02T15:04:05Z07:00" . | unixEpoch | int64 }}
{{- if not (and (regexMatch "^2[0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$" .) (gt $expires 0)) }}
{{- fail (printf "expires of %s must be a date and time with an offset, such as 2027-01-31T00:00:00Z." $where) }}
{{- end }}
{{- end }}
{{- $digest := lower (default (sha256sum $token) $sha256) }}
{{- $owner := printf "%s %d" $entry.name $expires }}
{{- if ne (default $owner (get $owners $digest)) $owner }}
{{- fail (printf "The token of %s is already in auth.tokens, with another name or another expiry." $where) }}
{{- end }}
{{- $_ := set $owners $digest $owner }}
{{- $may := dict "read_only" (default false $entry.read_only) "resources" (ne (toString $entry.resources) "false")
  "tools" (ternary $entry.tools "all" (hasKey $entry "tools")) "max_in_flight" (int64 $entry.max_in_flight) "rate" (int64 $entry.rate) | toJson }}
{{- if ne (default $may (get $rights $entry.name)) $may }}
{{- fail (printf "%s has other permissions than an earlier entry with the same name." $where) }}
{{- end }}
{{- $_ := set $rights $entry.name $may }}
{{- end }}
{{- end }}

{{/* Fails for values that cannot work, each with a message that names the fix. */}}
{{- define "vestige.validate" -}}
{{- include "vestige.validateAuth" . }}
{{- if and .Values.audit.required (not .Values.audit.enabled) }}
{{- fail "audit.required needs audit.enabled: without it no audit lines are written." }}
{{- end }}
{{- if ne (int .Values.replicaCount) 1 }}
{{- fail "replicaCount must be 1: only one Vestige process may use the SQLite file, and two pods would damage it." }}
{{- end }}
{{- if le (int .Values.terminationGracePeriodSeconds) (int .Values.bridge.drainSeconds) }}
{{- fail "terminationGracePeriodSeconds must be larger than bridge.drainSeconds: the bridge drains first, then Vestige stops." }}
{{- end }}
{{- range $object := list "podMonitor" "alerts" "dashboard" }}
{{- if and (index $.Values.metrics $object).enabled (not $.Values.metrics.enabled) }}
{{- fail (printf "metrics.%s.enabled needs metrics.enabled: without it the metrics port is closed." $object) }}
{{- end }}
{{- end }}
{{- range $group := list "vestigeImage" "bridgeImage" }}
{{- if contains ":" (index $.Values $group).tag }}
{{- fail (printf "%s.tag is %s, which is not a tag: set a digest as %s.digest." $group (index $.Values $group).tag $group) }}
{{- end }}
{{- end }}
{{- range $label := keys (include "vestige.selectorLabels" . | fromYaml) | sortAlpha }}
{{- if hasKey $.Values.podLabels $label }}
{{- fail (printf "podLabels must not set %s: the Service and the Deployment select the pod by this label." $label) }}
{{- end }}
{{- end }}
{{- range .Values.vestige.extraEnv }}
{{- if eq .name "VESTIGE_AUTH_TOKEN" }}
{{- fail "vestige.extraEnv must not set VESTIGE_AUTH_TOKEN: a client's token is never given to Vestige. The bridge gets client tokens from auth, and with vestige.gateway=none Vestige gets its own token at each start." }}
{{- end }}
{{- end }}
{{- include "vestige.validateBackup" . }}
{{- include "vestige.validateCluster" . }}
{{- end }}
