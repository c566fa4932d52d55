{{/* The containers that make and upload backups, their volumes, and the checks of their values. */}}
{{- define "vestige.backupContainers" -}}
# Not a sidecar, so that the bridge does not wait for it.
- name: backup
  image: {{ include "vestige.image" (list . "vestigeImage") | quote }}
  imagePullPolicy: {{ .Values.vestigeImage.pullPolicy }}
  command: [/usr/bin/tini, -g, --, vestige-backup, --schedule]
  env:
    - name: BACKUP_SCHEDULE
      value: {{ .Values.backup.schedule | quote }}
    - name: BACKUP_KEEP
      value: {{ .Values.backup.keep | quote }}
    {{- if .Values.backup.upload.image }}
    - name: BACKUP_UPLOAD_SECONDS
      value: {{ .Values.backup.upload.timeoutSeconds | quote }}
    {{- end }}
  securityContext:
    {{- toYaml .Values.containerSecurityContext | nindent 4 }}
  resources:
    {{- toYaml .Values.backup.resources | nindent 4 }}
  volumeMounts:
    - name: data
      mountPath: /data
    - name: backup-status
      mountPath: /run/vestige-backup
{{- if .Values.backup.upload.image }}
- name: upload
  image: {{ .Values.backup.upload.image | quote }}
  command:
    - sh
    - -c
    - |
      {{- .Files.Get "files/upload.sh" | nindent 6 }}
    - upload
  args:
    {{- toYaml .Values.backup.upload.command | nindent 4 }}
  env:
    {{- include "vestige.env" (list (list (dict "name" "HOME" "value" "/tmp")) .Values.backup.upload.env) | nindent 4 }}
  securityContext:
    {{- toYaml .Values.containerSecurityContext | nindent 4 }}
  resources:
    {{- toYaml .Values.backup.upload.resources | nindent 4 }}
  volumeMounts:
    - name: data
      mountPath: /data
      readOnly: true
    - name: backup-status
      mountPath: /run/vestige-backup
    - name: upload-tmp
      mountPath: /tmp
{{- end }}
{{- end }}

{{- define "vestige.backupVolumes" -}}
# Not on the data volume, which can be full.
- name: backup-status
  emptyDir:
    sizeLimit: 1Mi
{{- if .Values.backup.upload.image }}
- name: upload-tmp
  emptyDir:
    sizeLimit: 1Gi
{{- end }}
{{- end }}

{{- define "vestige.validateBackup" -}}
{{- range regexFindAll "[0-9]+-[0-9]+" .Values.backup.schedule -1 }}
{{- $ends := splitList "-" . }}
{{- if gt (trimPrefix "0" (index $ends 0) | int) (trimPrefix "0" (index $ends 1) | int) }}
{{- fail (printf "backup.schedule is '%s': the range %s ends before it begins." $.Values.backup.schedule .) }}
{{- end }}
{{- end }}
{{- if and .Values.backup.upload.image (not .Values.backup.enabled) }}
{{- fail "backup.upload.image requires backup.enabled: without it there is no backup to upload." }}
{{- end }}
{{- if ne (empty .Values.backup.upload.image) (empty .Values.backup.upload.command) }}
{{- fail "backup.upload.image and backup.upload.command must be set together." }}
{{- end }}
{{- end }}
