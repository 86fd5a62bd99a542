"""llama.cpp's flags that decide no placement: how many words each takes, so that a command can be read past them."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Flags without a value (common/arg.cpp of the pinned llama.cpp, and ``--mlock`` and ``--mmap`` of older ones).
WITHOUT_VALUE = _words(
    """
    -ag --agent --backend-sampling -bs --cache-idle-slots --cache-list --cache-prompt -cb --check
    --check-tensors -cl -cmoed -cnv --completion-bash --cont-batching --context-shift --conversation
    --cors-credentials --cpu-moe-draft --dflash --diffusion-visual --display-prompt -e --eagle3
    --embd-gemma-default --embedding --embeddings --escape --fim-qwen-1.5b-default --fim-qwen-14b-spec
    --fim-qwen-30b-default --fim-qwen-3b-default --fim-qwen-7b-default --fim-qwen-7b-spec --gpt-oss-120b-default
    --gpt-oss-20b-default -h --hellaswag --help -i --ids -if --ignore-eos --in-prefix-bos --interactive
    --interactive-first --jinja --kl-divergence --kv-unified -kvu --list-devices --log-disable --log-jsonl
    --log-prefix --log-timestamps --log-verbose --lora-init-without-apply --metrics -mli --mlock --mmap
    --mmproj-auto --mmproj-offload --models-autoload --mtp --multiline-input --multiple-choice -no-ag --no-agent
    --no-bos --no-cache-idle-slots --no-cache-prompt -no-cnv --no-cont-batching --no-context-shift
    --no-conversation --no-cors-credentials --no-display-prompt --no-escape --no-jinja --no-kv-unified -no-kvu
    --no-log-jsonl --no-log-prefix --no-log-timestamps --no-mmap --no-mmproj --no-mmproj-auto
    --no-mmproj-offload --no-models-autoload --no-parse-special --no-perf --no-ppl --no-prefill-assistant
    --no-reasoning-preserve --no-repack --no-show-timings --no-skip-chat-parsing --no-slots
    --no-spec-draft-backend-sampling --no-ui --no-ui-mcp-proxy --no-warmup --no-webui --no-webui-mcp-proxy -nocb
    -nr --offline --parse-special --perf --ppl -pps --prefill-assistant --process-output --prompt-cache-all
    --prompt-cache-ro --props --reasoning-preserve --repack --rerank --reranking --reuse-port --save-logits
    --show-count --show-statistics --show-timings --simple-io --single-turn --skip-chat-parsing --slots -sp
    --spec-default --spec-draft-backend-sampling --spec-draft-cpu-moe --special --spm-infill -st --stdin
    --swa-full -tgs --ui --ui-mcp-proxy --usage -v --verbose --verbose-prompt --version
    --vision-gemma-12b-default --vision-gemma-4b-default --warmup --webui --webui-mcp-proxy --winogrande
    """
)

#: Flags with one value.
WITH_VALUE = _words(
    """
    -C -Cb -Cbd -Cd -Cr -Crb -Crbd -Crd -a --adaptive-decay --adaptive-target --alias --api-key --api-key-file
    --api-prefix --attention --audio -b --batch-size -bf --binary-file -c --cache-ram --cache-reuse
    --cache-type-k --cache-type-k-draft --cache-type-v --cache-type-v-draft --chat-template --chat-template-file
    --chat-template-kwargs --checkpoint-min-step --chunk --chunk-separator --chunk-size --chunks --cls-separator
    -cms -co --color --context-file --control-vector --control-vector-scaled --cors-headers --cors-methods
    --cors-origins --cpu-mask --cpu-mask-batch --cpu-mask-batch-draft --cpu-mask-draft --cpu-range
    --cpu-range-batch --cpu-range-batch-draft --cpu-range-draft --cpu-strict --cpu-strict-batch
    --cpu-strict-batch-draft --cpu-strict-draft -cram -ctk -ctkd -ctv -ctvd --ctx-checkpoints --ctx-size -ctxcp
    -decay-epochs --defrag-thold -devd --device-draft --diffusion-add-gumbel-noise --diffusion-alg-temp
    --diffusion-algorithm --diffusion-block-length --diffusion-cfg-scale --diffusion-eps --diffusion-steps
    --docker-repo -dr --draft --draft-max --draft-min --draft-n --draft-n-min --draft-p-min --draft-p-split
    --dry-allowed-length --dry-base --dry-multiplier --dry-penalty-last-n --dry-sequence-breaker -dt
    --dynatemp-exp --dynatemp-range --embd-normalize --embd-output-format --embd-separator --epochs -epochs -f
    --file --fit -fit --fit-ctx --fit-print --fit-target -fitc -fitp -fitt --frequency-penalty --from-chunk -gan
    -gaw --gpu-layers-draft --grammar --grammar-file --grp-attn-n --grp-attn-w --hellaswag-tasks -hf --hf-file
    --hf-repo --hf-repo-draft --hf-token -hfd -hff -hfr -hfrd -hft --host --image --image-max-tokens
    --image-min-tokens --in-file --in-prefix --in-suffix -j -jf --json-schema --json-schema-file --junk --keep
    --kl-divergence-base --kv-unified-per-slot -l --lazy-mode -lcd -lcs --learning-rate
    --learning-rate-decay-epochs --learning-rate-min -lm --load-mode --log-colors --log-file --log-prompts-dir
    --log-verbosity --logit-bias --logits-output-dir --lookup-cache-dynamic --lookup-cache-static --lora
    --lora-scaled -lr -lr-min -lv -lzm --mcp-servers-config --mcp-servers-json -md --media-path --method --min-p
    --mirostat --mirostat-ent --mirostat-lr -mm --mmproj --mmproj-url -mmu --model-draft --model-url
    --models-dir --models-max --models-preset --mtmd-batch-max-tokens -mu --multiple-choice-tasks -n
    --n-cpu-moe-draft --n-gpu-layers-draft --n-predict -ncmoed --negative-file -ngld -np -npl -npp -ns -ntg
    --numa -o -ofreq -opt --optimizer -otd --output --output-file --output-format --output-frequency
    --override-kv --override-tensor-draft -p --parallel --path --pca-batch --pca-iter --poll --poll-batch
    --poll-batch-draft --poll-draft --pooling --port --pos --positive-file --ppl-output-type --ppl-stride
    --predict --presence-penalty --print-token-count --prio --prio-batch --prio-batch-draft --prio-draft
    --prompt --prompt-cache -ptc -r -rea --reasoning --reasoning-budget --reasoning-budget-message
    --reasoning-effort --reasoning-format --repeat-last-n --repeat-penalty --reverse-prompt --rope-freq-base
    --rope-freq-scale --rope-scale --rope-scaling -s --sampler-seq --samplers --sampling-seq --save-all-logits
    --save-frequency --seed --sequences --server-base --sleep-idle-seconds --slot-prompt-similarity
    --slot-save-path --spec-draft-cpu-mask --spec-draft-cpu-mask-batch --spec-draft-cpu-range
    --spec-draft-cpu-range-batch --spec-draft-cpu-strict --spec-draft-cpu-strict-batch --spec-draft-device
    --spec-draft-hf --spec-draft-model --spec-draft-n-cpu-moe --spec-draft-n-max --spec-draft-n-min
    --spec-draft-ncmoe --spec-draft-ngl --spec-draft-override-tensor --spec-draft-p-min --spec-draft-p-split
    --spec-draft-poll --spec-draft-poll-batch --spec-draft-prio --spec-draft-prio-batch --spec-draft-threads
    --spec-draft-threads-batch --spec-draft-type-k --spec-draft-type-v --spec-ngram-map-k-min-hits
    --spec-ngram-map-k-size-m --spec-ngram-map-k-size-n --spec-ngram-map-k4v-min-hits
    --spec-ngram-map-k4v-size-m --spec-ngram-map-k4v-size-n --spec-ngram-min-hits --spec-ngram-mod-n-match
    --spec-ngram-mod-n-max --spec-ngram-mod-n-min --spec-ngram-simple-min-hits --spec-ngram-simple-size-m
    --spec-ngram-simple-size-n --spec-ngram-size-m --spec-ngram-size-n --spec-synth-len --spec-synth-rates
    --spec-type -sps --sse-ping-interval --ssl-cert-file --ssl-key-file --swa-checkpoints -sys -sysf
    --system-prompt --system-prompt-file -t --tags -tb -tbd -td --temp --temperature --tensor-filter --threads
    --threads-batch --threads-batch-draft --threads-draft --threads-http --timeout -to --tools --tools-runtime
    --top-k --top-n-sigma --top-nsigma --top-p --tts-lang --tts-speaker-file --typical --typical-p -ub
    --ubatch-size --ui-config --ui-config-file --val-split -val-split --verbosity --video --video-ffmpeg-dir
    --video-fps --video-timestamp-interval -wd --webui-config --webui-config-file --weight-decay
    --winogrande-tasks --xtc-probability --xtc-threshold --yarn-attn-factor --yarn-beta-fast --yarn-beta-slow
    --yarn-ext-factor --yarn-orig-ctx
    """
)

#: Flags with two values.
WITH_TWO_VALUES = frozenset(("--control-vector-layer-range",))

#: Flags that take one of these values or, in older versions, none.
MAYBE_WITH_VALUE = frozenset(("-fa", "--flash-attn"))
SWITCH_VALUES = frozenset(("on", "off", "auto", "0", "1", "true", "false", "enabled", "disabled"))

#: Flags of ik_llama.cpp alone, without and with a value (its common/common.cpp).
IK_WITHOUT_VALUE = _words(
    """
    -fmoe --fused-moe -no-fmoe --no-fused-moe -rtr --run-time-repack -ger --grouped-expert-routing -no-fa --no-fa
    --no-flash-attn -no-fug --no-fused-up-gate -gr --graph-reuse -no-gr --no-graph-reuse -mqkv --merge-qkv -muge
    --merge-up-gate-experts -khad --k-cache-hadamard -vhad --v-cache-hadamard -thp --transparent-huge-pages -sas
    --scheduler-async -smgs --split-mode-graph-scheduling -ooae --offload-only-active-experts -no-ooae
    --no-offload-only-active-experts -wb --warmup-batch
    """
)
IK_WITH_VALUE = _words(
    """
    -mla --mla-use -amb --attention-max-batch -ser --smart-expert-reduction -op --offload-policy -grt
    --graph-reduce-type --max-gpu -cuda --cuda-params
    """
)

#: Flags whose value is a secret, to be kept out of what is written.
SECRET = frozenset(("--api-key", "-hft", "--hf-token"))
