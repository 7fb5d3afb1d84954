{{- define "pipeline.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "pipeline.labels" -}}
app.kubernetes.io/name: pipeline
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "pipeline.selector" -}}
app.kubernetes.io/name: pipeline
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* A value as an environment variable has it, in quotes. Helm reads 10485760 as 1.048576e+07. */}}
{{- define "pipeline.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ printf "%.0f" . | quote }}
{{- else -}}
{{ toString . | quote }}
{{- end -}}
{{- end }}

{{/* Say at installation what would otherwise be a pod that does not start. */}}
{{- define "pipeline.check" -}}
{{- $config := .Values.config -}}
{{- $given := merge (dict) $config .Values.secrets -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository is required: where you have pushed the image that deploy/Containerfile builds" -}}
{{- end -}}
{{- if not $config.PUBLIC_URL -}}
{{- fail "config.PUBLIC_URL is required, as https://photos.example.com" -}}
{{- end -}}
{{- if and .Values.existingSecret .Values.secrets -}}
{{- fail "secrets and existingSecret are both given: only one of them can be used" -}}
{{- end -}}
{{- if not .Values.existingSecret -}}
{{- range list "REDIS_URL" "MONGODB_URI" -}}
{{- if not (get $.Values.secrets .) -}}
{{- fail (printf "secrets.%s is required, or existingSecret with that key" .) -}}
{{- end -}}
{{- end -}}
{{- if not (or $given.JWT_SECRET $given.JWT_PUBLIC_KEY $given.JWT_JWKS_URL) -}}
{{- fail "one of secrets.JWT_SECRET, config.JWT_PUBLIC_KEY and config.JWT_JWKS_URL is required, or existingSecret" -}}
{{- end -}}
{{- end -}}
{{- $storage := $config.STORAGE_BACKEND | default (ternary "cloudinary_private" "local" (not (empty $given.CLOUDINARY_URL))) -}}
{{- if and (eq $storage "local") (not .Values.sharedDataClaim) -}}
{{- fail "pods share no disk, photos would be gone with their pod: set config.STORAGE_BACKEND (object, cloudinary_private), secrets.CLOUDINARY_URL, or sharedDataClaim" -}}
{{- end -}}
{{- end }}

{{/* The parts of a pod that web and worker have in common. Takes a dict: root, role ("web" or "worker"). */}}
{{- define "pipeline.pod" -}}
{{- $root := .root -}}
{{- $part := index $root.Values .role -}}
{{- $isWeb := eq .role "web" -}}
{{- $config := $root.Values.config -}}
metadata:
  labels:
    {{- include "pipeline.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
  annotations:
    # Changed settings start new pods, a few at a time.
    checksum/config: {{ include (print $root.Template.BasePath "/settings.yaml") $root | sha256sum }}
    {{- with $part.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "pipeline.name" $root }}
  automountServiceAccountToken: false
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  # What the sleep before SIGTERM, the lame duck, running jobs and the end itself take, and five seconds more.
  terminationGracePeriodSeconds: {{ add (ternary (int $part.preStopSleepSeconds) 0 $isWeb) (int $config.LAME_DUCK_SECONDS) (int $config.SHUTDOWN_SECONDS) 7 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: { type: RuntimeDefault }
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "pipeline.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ .role }}
  containers:
    - name: pipeline
      image: "{{ $root.Values.image.repository }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}"
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      ports:
        - { name: http, containerPort: 8080 }
      envFrom:
        - configMapRef: { name: {{ include "pipeline.name" $root }} }
        - secretRef: { name: {{ $root.Values.existingSecret | default (include "pipeline.name" $root) }} }
      env:
        - { name: ROLE, value: {{ .role }} }
        - { name: HOST, value: "0.0.0.0" }
        - { name: PORT, value: "8080" }
        - { name: DATA_DIR, value: /data }
        - { name: LOG_FORMAT, value: json }
        {{- range $name, $value := $part.env }}
        - { name: {{ $name }}, value: {{ include "pipeline.text" $value }} }
        {{- end }}
      # Touches nothing else: an outage of Redis or the store restarts no pod.
      livenessProbe:
        httpGet: { path: /livez, port: http }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      startupProbe:
        httpGet: { path: /livez, port: http }
        periodSeconds: 2
        failureThreshold: 60
      # Web pods: only what one pod lacks while others have it. While Redis is away all of them accept uploads, and a
      # Service without ready pods would refuse these. Worker pods get no requests: theirs asks everything, so that a
      # wrong address of Redis or the store stops an update at the first new pod.
      readinessProbe:
        httpGet: { path: {{ ternary "/readyz?local" "/readyz" $isWeb | quote }}, port: http }
        periodSeconds: 5
        timeoutSeconds: 4
        failureThreshold: 2
      {{- if and $isWeb (gt (int $part.preStopSleepSeconds) 0) }}
      lifecycle:
        preStop:
          exec: { command: [sleep, {{ $part.preStopSleepSeconds | quote }}] }
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: { drop: [ALL] }
      resources: {{- toYaml $part.resources | nindent 8 }}
      volumeMounts:
        - { name: data, mountPath: /data }
        - { name: tmp, mountPath: /tmp }
  volumes:
    - name: data
      {{- if $root.Values.sharedDataClaim }}
      persistentVolumeClaim: { claimName: {{ $root.Values.sharedDataClaim }} }
      {{- else }}
      # Large uploads lie here until they are stored.
      emptyDir: {}
      {{- end }}
    - name: tmp
      emptyDir: {}
  {{- with $part.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $part.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
