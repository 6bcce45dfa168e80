	.file	"<string>"
	.section	.rodata.cst4,"aM",@progbits,4
	.p2align	2, 0x0
.LCPI0_0:
	.long	0xbe000000
.LCPI0_1:
	.long	0x3f800000
.LCPI0_2:
	.long	0x7fffffff
.LCPI0_3:
	.long	0x7f7fffff
.LCPI0_4:
	.long	0x41080000
.LCPI0_5:
	.long	0x77800000
.LCPI0_6:
	.long	0x08800000
.LCPI0_7:
	.long	0x41700000
	.section	.ltext,"axl",@progbits
	.globl	_ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.p2align	4
	.type	_ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE,@function
_ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	pushq	%r15
	.cfi_def_cfa_offset 24
	pushq	%r14
	.cfi_def_cfa_offset 32
	pushq	%r13
	.cfi_def_cfa_offset 40
	pushq	%r12
	.cfi_def_cfa_offset 48
	pushq	%rbx
	.cfi_def_cfa_offset 56
	subq	$168, %rsp
	.cfi_def_cfa_offset 224
	.cfi_offset %rbx, -56
	.cfi_offset %r12, -48
	.cfi_offset %r13, -40
	.cfi_offset %r14, -32
	.cfi_offset %r15, -24
	.cfi_offset %rbp, -16
	movq	264(%rsp), %rbx
	movq	240(%rsp), %r12
	movabsq	$NRT_incref, %r13
	movq	%rdi, 64(%rsp)
	movq	%rdx, %rdi
	movq	%r9, %rbp
	movq	%r8, 56(%rsp)
	movq	%rcx, %r14
	movq	%rdx, %r15
	movq	%rsi, (%rsp)
	callq	*%r13
	movq	%rbx, %rdi
	callq	*%r13
	movq	%r15, %rdi
	callq	*%r13
	cmpq	$4, %rbp
	jne	.LBB0_1
.LBB0_17:
	movq	304(%rsp), %rbx
	movq	%rbp, 104(%rsp)
	testq	%rbx, %rbx
	jle	.LBB0_19
	xorl	%r13d, %r13d
.LBB0_20:
	movq	232(%rsp), %rbp
	cmpq	$2, 312(%rsp)
	movl	$2, %eax
	movq	%rax, 16(%rsp)
	jle	.LBB0_21
.LBB0_22:
	movq	264(%rsp), %rdi
	movabsq	$NRT_incref, %rax
	callq	*%rax
	testq	%rbp, %rbp
	jle	.LBB0_14
	subq	%r13, %rbx
	movq	312(%rsp), %rdx
	movq	16(%rsp), %rsi
	movq	%r13, %r8
	movq	296(%rsp), %r13
	movq	%rbx, %rax
	sarq	$63, %rax
	andnq	%rbx, %rax, %rdi
	movq	%r12, %rax
	imulq	%rbp, %rax
	xorl	%ebx, %ebx
	movq	%rdi, 88(%rsp)
	movq	%rax, 96(%rsp)
	movq	%rdx, %rax
	subq	%rsi, %rax
	imulq	%rdx, %r8
	addq	%r13, %rsi
	movq	%rax, %rcx
	sarq	$63, %rcx
	andnq	%rax, %rcx, %rax
	movabsq	$.LCPI0_0, %rcx
	vmovss	(%rcx), %xmm0
	movq	%rax, 80(%rsp)
	imulq	%rdi, %rax
	addq	%r8, %rsi
	movq	%rsi, 16(%rsp)
	movq	%rax, 72(%rsp)
	movabsq	$.LCPI0_2, %rax
	vmovss	%xmm0, 48(%rsp)
	vbroadcastss	(%rax), %xmm0
	movabsq	$.LCPI0_1, %rax
	vmovaps	%xmm0, 128(%rsp)
	vmovss	(%rax), %xmm0
	movabsq	$.LCPI0_3, %rax
	vmovss	%xmm0, 28(%rsp)
	vmovss	(%rax), %xmm0
	movabsq	$.LCPI0_4, %rax
	vmovss	%xmm0, 44(%rsp)
	vmovss	(%rax), %xmm0
	movabsq	$.LCPI0_5, %rax
	vmovss	(%rax), %xmm1
	movabsq	$.LCPI0_6, %rax
	vmovss	(%rax), %xmm2
	movabsq	$.LCPI0_7, %rax
	vmovaps	%xmm0, 112(%rsp)
	vmovss	%xmm1, 40(%rsp)
	vmovss	(%rax), %xmm1
	vmovss	%xmm2, 36(%rsp)
	vmovss	%xmm1, 32(%rsp)
	.p2align	4
.LBB0_9:
	movabsq	$NRT_incref, %rax
	movq	%r15, %rdi
	callq	*%rax
	movq	96(%rsp), %r8
	movl	$0, 12(%rsp)
	movl	$4, %r9d
	leaq	12(%rsp), %rdi
	leaq	160(%rsp), %rsi
	movq	%r15, %rdx
	movq	%r14, %rcx
	pushq	%rbx
	.cfi_adjust_cfa_offset 8
	pushq	264(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	264(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	%r12
	.cfi_adjust_cfa_offset 8
	pushq	%rbp
	.cfi_adjust_cfa_offset 8
	pushq	264(%rsp)
	.cfi_adjust_cfa_offset 8
	movabsq	$_ZN10zenconvert7formats4gguf6blocks6legacy12_signed_peakB2v3B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedEx, %rax
	callq	*%rax
	addq	$48, %rsp
	.cfi_adjust_cfa_offset -48
	testl	%eax, %eax
	jne	.LBB0_15
	vmovss	12(%rsp), %xmm0
	movabsq	$NRT_decref, %rax
	movq	%r15, %rdi
	vmovss	%xmm0, 52(%rsp)
	callq	*%rax
	vmovss	52(%rsp), %xmm0
	vxorps	%xmm1, %xmm1, %xmm1
	vmulss	48(%rsp), %xmm0, %xmm0
	vucomiss	%xmm1, %xmm0
	jne	.LBB0_11
	jnp	.LBB0_12
.LBB0_11:
	vmovss	28(%rsp), %xmm1
	vdivss	%xmm0, %xmm1, %xmm1
.LBB0_12:
	vmovaps	128(%rsp), %xmm3
	vxorps	%xmm4, %xmm4, %xmm4
	movl	$1895825408, %edx
	vandps	%xmm3, %xmm1, %xmm2
	vucomiss	44(%rsp), %xmm2
	vmovaps	112(%rsp), %xmm2
	seta	%al
	kmovd	%eax, %k1
	vmovd	%xmm0, %eax
	vmovss	%xmm4, %xmm2, %xmm2 {%k1}
	vmovss	%xmm4, %xmm1, %xmm1 {%k1}
	vandps	%xmm3, %xmm0, %xmm0
	vmulss	40(%rsp), %xmm0, %xmm0
	leal	(%rax,%rax), %ecx
	cmpl	$1895825409, %ecx
	cmovael	%ecx, %edx
	vmulss	36(%rsp), %xmm0, %xmm0
	shrl	%edx
	andl	$2139095040, %edx
	addl	$125829120, %edx
	vmovd	%edx, %xmm3
	vaddss	%xmm3, %xmm0, %xmm0
	vmovd	%xmm0, %edx
	movl	%edx, %esi
	shrl	$13, %esi
	andl	$4095, %edx
	andl	$31744, %esi
	addl	%esi, %edx
	cmpl	$-16777215, %ecx
	movl	$32256, %ecx
	cmovael	%ecx, %edx
	shrl	$16, %eax
	andl	$32768, %eax
	orl	%edx, %eax
	movw	%ax, (%r13)
	subq	$8, %rsp
	.cfi_adjust_cfa_offset 8
	vmovss	40(%rsp), %xmm3
	movq	64(%rsp), %r8
	movq	112(%rsp), %r9
	vxorps	%xmm0, %xmm0, %xmm0
	leaq	160(%rsp), %rdi
	leaq	152(%rsp), %rsi
	movq	%r15, %rdx
	movq	%r14, %rcx
	pushq	336(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	336(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	104(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	120(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	56(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	336(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	128(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	336(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	336(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	%rbx
	.cfi_adjust_cfa_offset 8
	pushq	344(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	344(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	%r12
	.cfi_adjust_cfa_offset 8
	pushq	%rbp
	.cfi_adjust_cfa_offset 8
	pushq	344(%rsp)
	.cfi_adjust_cfa_offset 8
	movabsq	$_ZN10zenconvert7formats4gguf6blocks6legacy8_nibblesB2v7B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedEx8UniTupleIfLi4EE5ArrayIhLi2E1A7mutable7alignedE, %rax
	callq	*%rax
	addq	$128, %rsp
	.cfi_adjust_cfa_offset -128
	testl	%eax, %eax
	jne	.LBB0_15
	addq	312(%rsp), %r13
	incq	%rbx
	cmpq	%rbx, %rbp
	jne	.LBB0_9
.LBB0_14:
	movabsq	$NRT_decref, %r14
	movq	%r15, %rdi
	callq	*%r14
	movq	264(%rsp), %rbx
	movq	%rbx, %rdi
	callq	*%r14
	movq	%rbx, %rdi
	callq	*%r14
	movq	%r15, %rdi
	callq	*%r14
	movq	64(%rsp), %rax
	movq	$0, (%rax)
	xorl	%eax, %eax
	jmp	.LBB0_16
.LBB0_1:
	cmpq	$1, %r12
	sete	%al
	cmpq	$0, 56(%rsp)
	sete	%cl
	cmpq	%rbp, 256(%rsp)
	sete	%dl
	orb	%al, %cl
	orb	%dl, %cl
	je	.LBB0_2
	cmpq	$4, %rbp
	jle	.LBB0_7
	testb	$3, %bpl
	je	.LBB0_17
	movabsq	$.const.picklebuf.cd031e359a7144cf236a491720e2f0343ca0da30, %rax
	jmp	.LBB0_3
.LBB0_2:
	movabsq	$.const.picklebuf.f9e61476d731dbc160bce9c6ae62b974aee28117, %rax
	jmp	.LBB0_3
.LBB0_15:
	movq	(%rsp), %rcx
	movq	$0, (%rcx)
	jmp	.LBB0_16
.LBB0_7:
	movl	%r12d, %eax
	imull	%ebp, %eax
	testb	$3, %al
	je	.LBB0_17
	movabsq	$.const.picklebuf.6df0aea899c9d6b21d65dec328965fa4891f4c5a, %rax
.LBB0_3:
	movq	(%rsp), %rcx
	movq	%rax, (%rcx)
	movl	$1, %eax
.LBB0_16:
	addq	$168, %rsp
	.cfi_def_cfa_offset 56
	popq	%rbx
	.cfi_def_cfa_offset 48
	popq	%r12
	.cfi_def_cfa_offset 40
	popq	%r13
	.cfi_def_cfa_offset 32
	popq	%r14
	.cfi_def_cfa_offset 24
	popq	%r15
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	retq
.LBB0_19:
	.cfi_def_cfa_offset 224
	movq	%rbx, %r13
	jmp	.LBB0_20
.LBB0_21:
	movq	312(%rsp), %rax
	movq	%rax, 16(%rsp)
	jmp	.LBB0_22
.Lfunc_end0:
	.size	_ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE, .Lfunc_end0-_ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.cfi_endproc

	.globl	_ZN7cpython10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.p2align	4
	.type	_ZN7cpython10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE,@function
_ZN7cpython10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	pushq	%r15
	.cfi_def_cfa_offset 24
	pushq	%r14
	.cfi_def_cfa_offset 32
	pushq	%r13
	.cfi_def_cfa_offset 40
	pushq	%r12
	.cfi_def_cfa_offset 48
	pushq	%rbx
	.cfi_def_cfa_offset 56
	subq	$392, %rsp
	.cfi_def_cfa_offset 448
	.cfi_offset %rbx, -56
	.cfi_offset %r12, -48
	.cfi_offset %r13, -40
	.cfi_offset %r14, -32
	.cfi_offset %r15, -24
	.cfi_offset %rbp, -16
	movq	%rsi, %rdi
	movabsq	$.const._q4_0, %rsi
	movabsq	$PyArg_UnpackTuple, %r10
	leaq	184(%rsp), %r8
	leaq	176(%rsp), %r9
	movl	$2, %edx
	movl	$2, %ecx
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	callq	*%r10
	movq	$0, 120(%rsp)
	testl	%eax, %eax
	je	.LBB1_8
	movabsq	$_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE, %rax
	cmpq	$0, (%rax)
	je	.LBB1_13
	movq	184(%rsp), %rdi
	movabsq	$NRT_adapt_ndarray_from_python, %r15
	leaq	192(%rsp), %rsi
	vxorps	%xmm0, %xmm0, %xmm0
	vmovups	%zmm0, 192(%rsp)
	movq	$0, 256(%rsp)
	vzeroupper
	callq	*%r15
	cmpq	$4, 216(%rsp)
	setne	%cl
	testl	%eax, %eax
	setne	%bl
	orb	%cl, %bl
	cmpb	$1, %bl
	je	.LBB1_15
	testb	%bl, %bl
	jne	.LBB1_16
.LBB1_4:
	movq	200(%rsp), %rax
	movq	248(%rsp), %rcx
	movq	176(%rsp), %rdi
	movq	192(%rsp), %r13
	movq	208(%rsp), %rbp
	movq	224(%rsp), %r14
	movq	232(%rsp), %r12
	movq	240(%rsp), %rbx
	leaq	272(%rsp), %rsi
	vxorps	%xmm0, %xmm0, %xmm0
	vmovups	%zmm0, 272(%rsp)
	movq	$0, 336(%rsp)
	movq	%rax, 168(%rsp)
	movq	256(%rsp), %rax
	movq	%rcx, 160(%rsp)
	movq	%rax, 152(%rsp)
	vzeroupper
	callq	*%r15
	testl	%eax, %eax
	jne	.LBB1_17
	cmpq	$1, 296(%rsp)
	jne	.LBB1_17
	vmovups	304(%rsp), %ymm0
	movq	%r13, 128(%rsp)
	movq	%rbp, 144(%rsp)
	movq	%r14, %rbp
	movq	272(%rsp), %r15
	movq	280(%rsp), %r14
	movq	336(%rsp), %r13
	movabsq	$PyEval_SaveThread, %rax
	vmovups	%ymm0, 352(%rsp)
	vzeroupper
	callq	*%rax
	vmovups	352(%rsp), %ymm0
	movq	%rax, 136(%rsp)
	movq	%r13, 104(%rsp)
	leaq	264(%rsp), %rdi
	leaq	120(%rsp), %rsi
	movl	$4, %r9d
	vmovups	%ymm0, 72(%rsp)
	movq	%r12, 8(%rsp)
	movq	%r14, 48(%rsp)
	movq	%r15, 40(%rsp)
	movq	%rbx, 16(%rsp)
	movq	%rbp, (%rsp)
	movq	$1, 64(%rsp)
	movq	160(%rsp), %rcx
	movq	152(%rsp), %rax
	movq	128(%rsp), %r12
	movq	144(%rsp), %r8
	movq	%rcx, 24(%rsp)
	movq	168(%rsp), %rcx
	movq	%rax, 32(%rsp)
	movabsq	$_ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE, %rax
	movq	%r12, %rdx
	vzeroupper
	callq	*%rax
	movq	136(%rsp), %rdi
	movq	120(%rsp), %r14
	movl	%eax, %ebp
	movabsq	$PyEval_RestoreThread, %rax
	callq	*%rax
	movabsq	$NRT_decref, %rbx
	movq	%r12, %rdi
	callq	*%rbx
	movq	%r15, %rdi
	callq	*%rbx
	testl	%ebp, %ebp
	jne	.LBB1_9
	movabsq	$_Py_NoneStruct, %rbx
	movabsq	$Py_IncRef, %rax
	movq	%rbx, %rdi
	callq	*%rax
.LBB1_8:
	movq	%rbx, %rax
	addq	$392, %rsp
	.cfi_def_cfa_offset 56
	popq	%rbx
	.cfi_def_cfa_offset 48
	popq	%r12
	.cfi_def_cfa_offset 40
	popq	%r13
	.cfi_def_cfa_offset 32
	popq	%r14
	.cfi_def_cfa_offset 24
	popq	%r15
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	retq
.LBB1_9:
	.cfi_def_cfa_offset 448
	jle	.LBB1_18
	movabsq	$PyErr_Clear, %rax
	callq	*%rax
	movl	8(%r14), %esi
	movq	(%r14), %rdi
	cmpl	$0, 32(%r14)
	jle	.LBB1_21
	movslq	%esi, %rsi
	movabsq	$PyBytes_FromStringAndSize, %rax
	callq	*%rax
	movq	16(%r14), %rdi
	movq	%rax, %rbx
	callq	*24(%r14)
	testq	%rax, %rax
	je	.LBB1_28
	movabsq	$numba_runtime_build_excinfo_struct, %rcx
	movq	%rbx, %rdi
	movq	%rax, %rsi
	callq	*%rcx
	movabsq	$NRT_Free, %r15
	movq	%r14, %rdi
	movq	%rax, %rbx
	callq	*%r15
	jmp	.LBB1_22
.LBB1_13:
	movabsq	$PyExc_RuntimeError, %rdi
	movabsq	$".const.missing Environment: _ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE", %rsi
.LBB1_14:
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
	xorl	%ebx, %ebx
	jmp	.LBB1_8
.LBB1_15:
	movabsq	$PyExc_TypeError, %rdi
	movabsq	$".const.can't unbox array from PyObject into native value.  The object maybe of a different type", %rsi
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
	testb	%bl, %bl
	je	.LBB1_4
	jmp	.LBB1_16
.LBB1_17:
	movabsq	$PyExc_TypeError, %rdi
	movabsq	$".const.can't unbox array from PyObject into native value.  The object maybe of a different type", %rsi
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
	movabsq	$NRT_decref, %rax
	movq	%r13, %rdi
	jmp	.LBB1_24
.LBB1_18:
	cmpl	$-3, %ebp
	je	.LBB1_25
	cmpl	$-1, %ebp
	jne	.LBB1_26
.LBB1_16:
	xorl	%ebx, %ebx
	jmp	.LBB1_8
.LBB1_21:
	movq	16(%r14), %rdx
	movabsq	$numba_unpickle, %rax
	callq	*%rax
	movq	%rax, %rbx
.LBB1_22:
	testq	%rbx, %rbx
	je	.LBB1_16
	movabsq	$numba_do_raise, %rax
	movq	%rbx, %rdi
.LBB1_24:
	callq	*%rax
	xorl	%ebx, %ebx
	jmp	.LBB1_8
.LBB1_25:
	movabsq	$PyExc_StopIteration, %rdi
	movabsq	$PyErr_SetNone, %rax
	jmp	.LBB1_24
.LBB1_26:
	movabsq	$PyExc_SystemError, %rdi
	movabsq	$".const.unknown error when calling native function", %rsi
	jmp	.LBB1_14
.LBB1_28:
	movabsq	$PyExc_RuntimeError, %rdi
	movabsq	$".const.Error creating Python tuple from runtime exception arguments", %rsi
	jmp	.LBB1_14
.Lfunc_end1:
	.size	_ZN7cpython10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE, .Lfunc_end1-_ZN7cpython10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.cfi_endproc

	.globl	cfunc._ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.p2align	4
	.type	cfunc._ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE,@function
cfunc._ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	pushq	%r15
	.cfi_def_cfa_offset 24
	pushq	%r14
	.cfi_def_cfa_offset 32
	pushq	%rbx
	.cfi_def_cfa_offset 40
	subq	$136, %rsp
	.cfi_def_cfa_offset 176
	.cfi_offset %rbx, -40
	.cfi_offset %r14, -32
	.cfi_offset %r15, -24
	.cfi_offset %rbp, -16
	vmovups	200(%rsp), %xmm1
	vmovups	224(%rsp), %ymm2
	vmovaps	256(%rsp), %xmm3
	vmovaps	176(%rsp), %xmm0
	movq	%rcx, %rax
	movq	%rsi, %rcx
	movq	192(%rsp), %rsi
	movq	%rdx, %r10
	movq	%rdi, %rdx
	movq	$0, 128(%rsp)
	movq	$0, 120(%rsp)
	movabsq	$_ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE, %r11
	leaq	128(%rsp), %rdi
	vmovups	%xmm3, 96(%rsp)
	vmovups	%ymm2, 64(%rsp)
	vmovups	%xmm1, 40(%rsp)
	movq	%rsi, 32(%rsp)
	leaq	120(%rsp), %rsi
	vmovups	%xmm0, 16(%rsp)
	movq	%r9, 8(%rsp)
	movq	%r8, (%rsp)
	movq	%r10, %r8
	movq	%rax, %r9
	vzeroupper
	callq	*%r11
	movl	%eax, %ecx
	movq	120(%rsp), %rbx
	movq	128(%rsp), %rax
	movl	$0, 116(%rsp)
	testl	%ecx, %ecx
	jne	.LBB2_1
.LBB2_8:
	addq	$136, %rsp
	.cfi_def_cfa_offset 40
	popq	%rbx
	.cfi_def_cfa_offset 32
	popq	%r14
	.cfi_def_cfa_offset 24
	popq	%r15
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	retq
.LBB2_1:
	.cfi_def_cfa_offset 176
	movabsq	$numba_gil_ensure, %r14
	leaq	116(%rsp), %rdi
	movq	%rax, %r15
	movl	%ecx, %ebp
	callq	*%r14
	testl	%ebp, %ebp
	jle	.LBB2_9
	movabsq	$PyErr_Clear, %rax
	callq	*%rax
	movl	8(%rbx), %esi
	movq	(%rbx), %rdi
	cmpl	$0, 32(%rbx)
	jle	.LBB2_12
	movslq	%esi, %rsi
	movabsq	$PyBytes_FromStringAndSize, %rax
	callq	*%rax
	movq	16(%rbx), %rdi
	movq	%rax, %r14
	callq	*24(%rbx)
	testq	%rax, %rax
	je	.LBB2_4
	movabsq	$numba_runtime_build_excinfo_struct, %rcx
	movq	%r14, %rdi
	movq	%rax, %rsi
	callq	*%rcx
	movabsq	$NRT_Free, %rbp
	movq	%rbx, %rdi
	movq	%rax, %r14
	callq	*%rbp
	jmp	.LBB2_13
.LBB2_9:
	movl	%ebp, %eax
	cmpl	$-3, %ebp
	je	.LBB2_5
	cmpl	$-1, %eax
	je	.LBB2_7
	movabsq	$PyExc_SystemError, %rdi
	movabsq	$".const.unknown error when calling native function.2", %rsi
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
	jmp	.LBB2_7
.LBB2_12:
	movq	16(%rbx), %rdx
	movabsq	$numba_unpickle, %rax
	callq	*%rax
	movq	%rax, %r14
.LBB2_13:
	testq	%r14, %r14
	je	.LBB2_7
	movabsq	$numba_do_raise, %rax
	movq	%r14, %rdi
.LBB2_6:
	callq	*%rax
.LBB2_7:
	movabsq	$".const.<numba.core.cpu.CPUContext>", %rdi
	movabsq	$PyUnicode_FromString, %rax
	callq	*%rax
	movabsq	$PyErr_WriteUnraisable, %r14
	movq	%rax, %rbx
	movq	%rbx, %rdi
	callq	*%r14
	movabsq	$Py_DecRef, %rax
	movq	%rbx, %rdi
	callq	*%rax
	movabsq	$numba_gil_release, %rax
	leaq	116(%rsp), %rdi
	callq	*%rax
	movq	%r15, %rax
	jmp	.LBB2_8
.LBB2_5:
	movabsq	$PyExc_StopIteration, %rdi
	movabsq	$PyErr_SetNone, %rax
	jmp	.LBB2_6
.LBB2_4:
	movabsq	$PyExc_RuntimeError, %rdi
	movabsq	$".const.Error creating Python tuple from runtime exception arguments.1", %rsi
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
	xorl	%eax, %eax
	jmp	.LBB2_8
.Lfunc_end2:
	.size	cfunc._ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE, .Lfunc_end2-cfunc._ZN10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.cfi_endproc

	.weak	NRT_incref
	.p2align	4
	.type	NRT_incref,@function
NRT_incref:
	testq	%rdi, %rdi
	je	.LBB3_2
	lock		incq	(%rdi)
.LBB3_2:
	retq
.Lfunc_end3:
	.size	NRT_incref, .Lfunc_end3-NRT_incref

	.weak	NRT_decref
	.p2align	4
	.type	NRT_decref,@function
NRT_decref:
	.cfi_startproc
	testq	%rdi, %rdi
	je	.LBB4_2
	#MEMBARRIER
	lock		decq	(%rdi)
	je	.LBB4_3
.LBB4_2:
	retq
.LBB4_3:
	movabsq	$NRT_MemInfo_call_dtor, %rax
	#MEMBARRIER
	jmpq	*%rax
.Lfunc_end4:
	.size	NRT_decref, .Lfunc_end4-NRT_decref
	.cfi_endproc

	.section	.rodata.cst4,"aM",@progbits,4
	.p2align	2, 0x0
.LCPI5_0:
	.long	2147483648
	.section	.ltext,"axl",@progbits
	.weak	_ZN10zenconvert7formats4gguf6blocks6legacy12_signed_peakB2v3B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedEx
	.p2align	4
	.type	_ZN10zenconvert7formats4gguf6blocks6legacy12_signed_peakB2v3B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedEx,@function
_ZN10zenconvert7formats4gguf6blocks6legacy12_signed_peakB2v3B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedEx:
	movq	24(%rsp), %rax
	testq	%rax, %rax
	jle	.LBB5_1
	movq	48(%rsp), %rcx
	movq	8(%rsp), %r8
	movq	%rcx, %r9
	sarq	$63, %r9
	andq	16(%rsp), %r9
	addq	%rcx, %r9
	imulq	%rax, %r9
	leaq	(%r8,%r9,4), %rcx
	cmpq	$8, %rax
	jae	.LBB5_5
	movl	$-2147483648, %r8d
	xorl	%r9d, %r9d
	xorl	%edx, %edx
	jmp	.LBB5_4
.LBB5_1:
	xorl	%r10d, %r10d
.LBB5_21:
	xorl	%eax, %eax
	movl	%r10d, (%rdi)
	vzeroupper
	retq
.LBB5_5:
	movabsq	$9223372036854775744, %rsi
	cmpq	$64, %rax
	jae	.LBB5_7
	xorl	%edx, %edx
	movl	$-2147483648, %r8d
	xorl	%r9d, %r9d
	jmp	.LBB5_11
.LBB5_7:
	leaq	192(%r8,%r9,4), %r8
	movabsq	$.LCPI5_0, %r9
	movq	%rax, %rdx
	andq	%rsi, %rdx
	vpxor	%xmm0, %xmm0, %xmm0
	vpxor	%xmm1, %xmm1, %xmm1
	vpxor	%xmm2, %xmm2, %xmm2
	vpxor	%xmm3, %xmm3, %xmm3
	vpbroadcastd	(%r9), %zmm4
	xorl	%r9d, %r9d
	vmovdqa64	%zmm4, %zmm5
	vmovdqa64	%zmm4, %zmm6
	vmovdqa64	%zmm4, %zmm7
	.p2align	4
.LBB5_8:
	vmovdqu64	-192(%r8,%r9,4), %zmm8
	vmovdqu64	-128(%r8,%r9,4), %zmm9
	vmovdqu64	-64(%r8,%r9,4), %zmm10
	vmovdqu64	(%r8,%r9,4), %zmm11
	addq	$64, %r9
	vpmaxsd	%zmm4, %zmm8, %zmm4
	vpmaxsd	%zmm5, %zmm9, %zmm5
	vpmaxsd	%zmm6, %zmm10, %zmm6
	vpmaxsd	%zmm7, %zmm11, %zmm7
	vpmaxud	%zmm0, %zmm8, %zmm0
	vpmaxud	%zmm1, %zmm9, %zmm1
	vpmaxud	%zmm2, %zmm10, %zmm2
	vpmaxud	%zmm3, %zmm11, %zmm3
	cmpq	%r9, %rdx
	jne	.LBB5_8
	vpmaxud	%zmm1, %zmm0, %zmm0
	vpmaxud	%zmm3, %zmm2, %zmm1
	vpmaxsd	%zmm5, %zmm4, %zmm4
	vpmaxsd	%zmm7, %zmm6, %zmm6
	vpmaxud	%zmm1, %zmm0, %zmm0
	vpmaxsd	%zmm6, %zmm4, %zmm4
	vextracti64x4	$1, %zmm4, %ymm5
	vextracti64x4	$1, %zmm0, %ymm1
	vpmaxsd	%zmm5, %zmm4, %zmm4
	vpmaxud	%zmm1, %zmm0, %zmm0
	vextracti128	$1, %ymm4, %xmm5
	vextracti128	$1, %ymm0, %xmm1
	vpmaxsd	%xmm5, %xmm4, %xmm4
	vpmaxud	%xmm1, %xmm0, %xmm0
	vpshufd	$238, %xmm4, %xmm5
	vpshufd	$238, %xmm0, %xmm1
	vpmaxsd	%xmm5, %xmm4, %xmm4
	vpmaxud	%xmm1, %xmm0, %xmm0
	vpshufd	$85, %xmm4, %xmm5
	vpshufd	$85, %xmm0, %xmm1
	vpmaxsd	%xmm5, %xmm4, %xmm4
	vpmaxud	%xmm1, %xmm0, %xmm0
	vmovd	%xmm4, %r8d
	vmovd	%xmm0, %r9d
	cmpq	%rdx, %rax
	je	.LBB5_15
	testb	$56, %al
	je	.LBB5_4
.LBB5_11:
	addq	$56, %rsi
	movq	%rdx, %r10
	vpbroadcastd	%r8d, %ymm1
	vpbroadcastd	%r9d, %ymm0
	movq	%rsi, %rdx
	andq	%rax, %rdx
	.p2align	4
.LBB5_12:
	vmovdqu	(%rcx,%r10,4), %ymm2
	addq	$8, %r10
	vpmaxsd	%ymm1, %ymm2, %ymm1
	vpmaxud	%ymm0, %ymm2, %ymm0
	cmpq	%r10, %rdx
	jne	.LBB5_12
	vextracti128	$1, %ymm1, %xmm2
	vpmaxsd	%xmm2, %xmm1, %xmm1
	vpshufd	$238, %xmm1, %xmm2
	vpmaxsd	%xmm2, %xmm1, %xmm1
	vpshufd	$85, %xmm1, %xmm2
	vpmaxsd	%xmm2, %xmm1, %xmm1
	vmovd	%xmm1, %r8d
	vextracti128	$1, %ymm0, %xmm1
	vpmaxud	%xmm1, %xmm0, %xmm0
	vpshufd	$238, %xmm0, %xmm1
	vpmaxud	%xmm1, %xmm0, %xmm0
	vpshufd	$85, %xmm0, %xmm1
	vpmaxud	%xmm1, %xmm0, %xmm0
	vmovd	%xmm0, %r9d
	jmp	.LBB5_14
.LBB5_4:
	movl	(%rcx,%rdx,4), %esi
	incq	%rdx
	cmpl	%r8d, %esi
	cmovgl	%esi, %r8d
	cmpl	%r9d, %esi
	cmoval	%esi, %r9d
.LBB5_14:
	cmpq	%rdx, %rax
	jne	.LBB5_4
.LBB5_15:
	movl	%r9d, %edx
	sarl	$31, %edx
	xorl	%esi, %esi
	andl	%r9d, %edx
	movl	%edx, %r9d
	andl	$2147483647, %r9d
	testl	%r8d, %r8d
	cmovgl	%r8d, %esi
	jle	.LBB5_20
	cmpl	%r9d, %esi
	jne	.LBB5_20
	xorl	%r8d, %r8d
	.p2align	4
.LBB5_18:
	cmpq	%r8, %rax
	je	.LBB5_20
	movl	(%rcx,%r8,4), %r10d
	incq	%r8
	movl	%r10d, %r11d
	andl	$2147483647, %r11d
	cmpl	%esi, %r11d
	jne	.LBB5_18
	jmp	.LBB5_21
.LBB5_20:
	orl	$-2147483648, %edx
	cmpl	%esi, %r9d
	cmovbel	%esi, %edx
	movl	%edx, %r10d
	xorl	%eax, %eax
	movl	%r10d, (%rdi)
	vzeroupper
	retq
.Lfunc_end5:
	.size	_ZN10zenconvert7formats4gguf6blocks6legacy12_signed_peakB2v3B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedEx, .Lfunc_end5-_ZN10zenconvert7formats4gguf6blocks6legacy12_signed_peakB2v3B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedEx

	.section	.rodata.cst16,"aM",@progbits,16
	.p2align	4, 0x0
.LCPI6_0:
	.byte	8
	.byte	4
	.byte	2
	.byte	1
	.byte	0
	.byte	0
	.byte	0
	.byte	0
	.byte	8
	.byte	4
	.byte	2
	.byte	1
	.byte	0
	.byte	0
	.byte	0
	.byte	0
	.section	.ltext,"axl",@progbits
	.weak	_ZN10zenconvert7formats4gguf6blocks6legacy8_nibblesB2v7B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedEx8UniTupleIfLi4EE5ArrayIhLi2E1A7mutable7alignedE
	.p2align	4
	.type	_ZN10zenconvert7formats4gguf6blocks6legacy8_nibblesB2v7B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedEx8UniTupleIfLi4EE5ArrayIhLi2E1A7mutable7alignedE,@function
_ZN10zenconvert7formats4gguf6blocks6legacy8_nibblesB2v7B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedEx8UniTupleIfLi4EE5ArrayIhLi2E1A7mutable7alignedE:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	pushq	%r15
	.cfi_def_cfa_offset 24
	pushq	%r14
	.cfi_def_cfa_offset 32
	pushq	%r13
	.cfi_def_cfa_offset 40
	pushq	%r12
	.cfi_def_cfa_offset 48
	pushq	%rbx
	.cfi_def_cfa_offset 56
	.cfi_offset %rbx, -56
	.cfi_offset %r12, -48
	.cfi_offset %r13, -40
	.cfi_offset %r14, -32
	.cfi_offset %r15, -24
	.cfi_offset %rbp, -16
	movq	152(%rsp), %rax
	testq	%rax, %rax
	jle	.LBB6_12
	movq	96(%rsp), %rcx
	movq	64(%rsp), %r9
	movq	168(%rsp), %rdx
	movq	136(%rsp), %r10
	movq	72(%rsp), %rsi
	movq	56(%rsp), %r8
	movq	%rcx, %r11
	sarq	$63, %r11
	andq	%r11, %r9
	andq	144(%rsp), %r11
	addq	%rcx, %r9
	addq	%rcx, %r11
	imulq	160(%rsp), %r11
	cmpq	$4, %rax
	setae	%bl
	cmpq	$1, %rdx
	sete	%bpl
	andb	%bl, %bpl
	leaq	(%r10,%r11), %rcx
	cmpb	$1, %bpl
	jne	.LBB6_5
	movq	%r9, %r14
	imulq	%rsi, %r14
	leaq	(%r10,%rax), %r15
	addq	%r11, %r15
	leaq	(%r8,%r14,4), %rbx
	cmpq	%r15, %rbx
	jae	.LBB6_13
	leaq	(%rax,%r14), %rbx
	leaq	64(%r8,%rbx,4), %rbx
	cmpq	%rbx, %rcx
	jae	.LBB6_13
.LBB6_5:
	xorl	%ebx, %ebx
.LBB6_6:
	movq	%rax, %r15
	andq	$3, %r15
	movq	%rbx, %r14
	je	.LBB6_9
	movq	%rbx, %r14
	imulq	%rdx, %r14
	addq	%r14, %r10
	movq	%rbx, %r14
	addq	%r11, %r10
	movq	%rsi, %r11
	imulq	%r9, %r11
	leaq	64(%r8,%r11,4), %r11
	.p2align	4
.LBB6_8:
	vmovss	(%r11,%r14,4), %xmm5
	vmovss	-64(%r11,%r14,4), %xmm4
	incq	%r14
	vsubss	%xmm0, %xmm5, %xmm5
	vsubss	%xmm0, %xmm4, %xmm4
	vmulss	%xmm5, %xmm1, %xmm5
	vmulss	%xmm4, %xmm1, %xmm4
	vaddss	%xmm5, %xmm2, %xmm5
	vaddss	%xmm4, %xmm2, %xmm4
	vminss	%xmm5, %xmm3, %xmm5
	vminss	%xmm4, %xmm3, %xmm4
	vcvttss2si	%xmm5, %r12d
	vcvttss2si	%xmm4, %ebp
	shlb	$4, %r12b
	orb	%bpl, %r12b
	movb	%r12b, (%r10)
	addq	%rdx, %r10
	decq	%r15
	jne	.LBB6_8
.LBB6_9:
	subq	%rax, %rbx
	cmpq	$-4, %rbx
	ja	.LBB6_12
	imulq	%r9, %rsi
	leaq	3(%r14), %r10
	leaq	1(%r14), %rbx
	movq	%r14, %r9
	imulq	%rdx, %r9
	leaq	(,%rdx,4), %r11
	imulq	%rdx, %r10
	imulq	%rdx, %rbx
	leaq	76(%r8,%rsi,4), %rsi
	leaq	2(%r14), %r8
	imulq	%rdx, %r8
	.p2align	4
.LBB6_11:
	vmovss	-12(%rsi,%r14,4), %xmm5
	vmovss	-76(%rsi,%r14,4), %xmm4
	vsubss	%xmm0, %xmm5, %xmm5
	vsubss	%xmm0, %xmm4, %xmm4
	vmulss	%xmm5, %xmm1, %xmm5
	vmulss	%xmm4, %xmm1, %xmm4
	vaddss	%xmm5, %xmm2, %xmm5
	vaddss	%xmm4, %xmm2, %xmm4
	vminss	%xmm5, %xmm3, %xmm5
	vminss	%xmm4, %xmm3, %xmm4
	vcvttss2si	%xmm5, %ebp
	vcvttss2si	%xmm4, %edx
	shlb	$4, %bpl
	orb	%dl, %bpl
	movb	%bpl, (%rcx,%r9)
	vmovss	-8(%rsi,%r14,4), %xmm5
	vmovss	-72(%rsi,%r14,4), %xmm4
	vsubss	%xmm0, %xmm5, %xmm5
	vsubss	%xmm0, %xmm4, %xmm4
	vmulss	%xmm5, %xmm1, %xmm5
	vmulss	%xmm4, %xmm1, %xmm4
	vaddss	%xmm5, %xmm2, %xmm5
	vaddss	%xmm4, %xmm2, %xmm4
	vminss	%xmm5, %xmm3, %xmm5
	vminss	%xmm4, %xmm3, %xmm4
	vcvttss2si	%xmm5, %ebp
	vcvttss2si	%xmm4, %edx
	shlb	$4, %bpl
	orb	%dl, %bpl
	movb	%bpl, (%rcx,%rbx)
	vmovss	-4(%rsi,%r14,4), %xmm5
	vmovss	-68(%rsi,%r14,4), %xmm4
	vsubss	%xmm0, %xmm5, %xmm5
	vsubss	%xmm0, %xmm4, %xmm4
	vmulss	%xmm5, %xmm1, %xmm5
	vmulss	%xmm4, %xmm1, %xmm4
	vaddss	%xmm5, %xmm2, %xmm5
	vaddss	%xmm4, %xmm2, %xmm4
	vminss	%xmm5, %xmm3, %xmm5
	vminss	%xmm4, %xmm3, %xmm4
	vcvttss2si	%xmm5, %ebp
	vcvttss2si	%xmm4, %edx
	shlb	$4, %bpl
	orb	%dl, %bpl
	movb	%bpl, (%rcx,%r8)
	vmovss	(%rsi,%r14,4), %xmm5
	vmovss	-64(%rsi,%r14,4), %xmm4
	addq	$4, %r14
	vsubss	%xmm0, %xmm5, %xmm5
	vsubss	%xmm0, %xmm4, %xmm4
	vmulss	%xmm5, %xmm1, %xmm5
	vmulss	%xmm4, %xmm1, %xmm4
	vaddss	%xmm5, %xmm2, %xmm5
	vaddss	%xmm4, %xmm2, %xmm4
	vminss	%xmm5, %xmm3, %xmm5
	vminss	%xmm4, %xmm3, %xmm4
	vcvttss2si	%xmm5, %ebp
	vcvttss2si	%xmm4, %edx
	shlb	$4, %bpl
	orb	%dl, %bpl
	movb	%bpl, (%rcx,%r10)
	addq	%r11, %rcx
	cmpq	%r14, %rax
	jne	.LBB6_11
.LBB6_12:
	movq	$0, (%rdi)
	xorl	%eax, %eax
	popq	%rbx
	.cfi_def_cfa_offset 48
	popq	%r12
	.cfi_def_cfa_offset 40
	popq	%r13
	.cfi_def_cfa_offset 32
	popq	%r14
	.cfi_def_cfa_offset 24
	popq	%r15
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	vzeroupper
	retq
.LBB6_13:
	.cfi_def_cfa_offset 56
	movabsq	$9223372036854775792, %r12
	movabsq	$.LCPI6_0, %r15
	cmpq	$15, %rax
	ja	.LBB6_15
	shlq	$2, %r14
	xorl	%ebx, %ebx
	jmp	.LBB6_19
.LBB6_15:
	vmovdqa	(%r15), %xmm8
	leaq	64(%r8,%r14,4), %r13
	vbroadcastss	%xmm0, %zmm4
	vbroadcastss	%xmm1, %zmm5
	vbroadcastss	%xmm2, %zmm6
	vbroadcastss	%xmm3, %zmm7
	movq	%rax, %rbx
	andq	%r12, %rbx
	shlq	$2, %r14
	xorl	%ebp, %ebp
	.p2align	4
.LBB6_16:
	vmovups	(%r13,%rbp,4), %zmm10
	vmovups	-64(%r13,%rbp,4), %zmm9
	vsubps	%zmm4, %zmm10, %zmm10
	vsubps	%zmm4, %zmm9, %zmm9
	vmulps	%zmm10, %zmm5, %zmm10
	vmulps	%zmm9, %zmm5, %zmm9
	vaddps	%zmm10, %zmm6, %zmm10
	vaddps	%zmm9, %zmm6, %zmm9
	vminps	%zmm10, %zmm7, %zmm10
	vminps	%zmm9, %zmm7, %zmm9
	vcvttps2dq	%zmm10, %zmm10
	vcvttps2dq	%zmm9, %zmm9
	vpmovdb	%zmm10, %xmm10
	vpmovdb	%zmm9, %xmm9
	vgf2p8affineqb	$0, %xmm8, %xmm10, %xmm10
	vpor	%xmm9, %xmm10, %xmm9
	vmovdqu	%xmm9, (%rcx,%rbp)
	addq	$16, %rbp
	cmpq	%rbp, %rbx
	jne	.LBB6_16
	cmpq	%rbx, %rax
	je	.LBB6_12
	testb	$12, %al
	je	.LBB6_6
.LBB6_19:
	vmovdqa	(%r15), %xmm8
	addq	$12, %r12
	vbroadcastss	%xmm0, %xmm4
	vbroadcastss	%xmm1, %xmm5
	vbroadcastss	%xmm2, %xmm6
	vbroadcastss	%xmm3, %xmm7
	leaq	64(%r8,%r14), %r14
	movq	%rbx, %r13
	movq	%r12, %rbx
	andq	%rax, %rbx
	.p2align	4
.LBB6_20:
	vmovups	(%r14,%r13,4), %xmm10
	vmovups	-64(%r14,%r13,4), %xmm9
	vsubps	%xmm4, %xmm10, %xmm10
	vsubps	%xmm4, %xmm9, %xmm9
	vmulps	%xmm5, %xmm10, %xmm10
	vmulps	%xmm5, %xmm9, %xmm9
	vaddps	%xmm6, %xmm10, %xmm10
	vaddps	%xmm6, %xmm9, %xmm9
	vminps	%xmm10, %xmm7, %xmm10
	vminps	%xmm9, %xmm7, %xmm9
	vcvttps2dq	%xmm10, %xmm10
	vcvttps2dq	%xmm9, %xmm9
	vpmovdb	%xmm10, %xmm10
	vpmovdb	%xmm9, %xmm9
	vgf2p8affineqb	$0, %xmm8, %xmm10, %xmm10
	vpor	%xmm9, %xmm10, %xmm9
	vmovd	%xmm9, (%rcx,%r13)
	addq	$4, %r13
	cmpq	%r13, %rbx
	jne	.LBB6_20
	cmpq	%rbx, %rax
	jne	.LBB6_6
	jmp	.LBB6_12
.Lfunc_end6:
	.size	_ZN10zenconvert7formats4gguf6blocks6legacy8_nibblesB2v7B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedEx8UniTupleIfLi4EE5ArrayIhLi2E1A7mutable7alignedE, .Lfunc_end6-_ZN10zenconvert7formats4gguf6blocks6legacy8_nibblesB2v7B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedEx8UniTupleIfLi4EE5ArrayIhLi2E1A7mutable7alignedE
	.cfi_endproc

	.type	.const._q4_0,@object
	.section	.lrodata,"al",@progbits
.const._q4_0:
	.asciz	"_q4_0"
	.size	.const._q4_0, 6

	.type	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE,@object
	.comm	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE,8,8
	.type	".const.missing Environment: _ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE",@object
	.p2align	4, 0x0
".const.missing Environment: _ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE":
	.asciz	"missing Environment: _ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE"
	.size	".const.missing Environment: _ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy5_q4_0B2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedE5ArrayIhLi2E1C7mutable7alignedE", 191

	.type	".const.can't unbox array from PyObject into native value.  The object maybe of a different type",@object
	.p2align	4, 0x0
".const.can't unbox array from PyObject into native value.  The object maybe of a different type":
	.asciz	"can't unbox array from PyObject into native value.  The object maybe of a different type"
	.size	".const.can't unbox array from PyObject into native value.  The object maybe of a different type", 89

	.type	".const.Error creating Python tuple from runtime exception arguments",@object
	.p2align	4, 0x0
".const.Error creating Python tuple from runtime exception arguments":
	.asciz	"Error creating Python tuple from runtime exception arguments"
	.size	".const.Error creating Python tuple from runtime exception arguments", 61

	.type	".const.unknown error when calling native function",@object
	.p2align	4, 0x0
".const.unknown error when calling native function":
	.asciz	"unknown error when calling native function"
	.size	".const.unknown error when calling native function", 43

	.type	".const.Error creating Python tuple from runtime exception arguments.1",@object
	.p2align	4, 0x0
".const.Error creating Python tuple from runtime exception arguments.1":
	.asciz	"Error creating Python tuple from runtime exception arguments"
	.size	".const.Error creating Python tuple from runtime exception arguments.1", 61

	.type	".const.unknown error when calling native function.2",@object
	.p2align	4, 0x0
".const.unknown error when calling native function.2":
	.asciz	"unknown error when calling native function"
	.size	".const.unknown error when calling native function.2", 43

	.type	".const.<numba.core.cpu.CPUContext>",@object
	.p2align	4, 0x0
".const.<numba.core.cpu.CPUContext>":
	.asciz	"<numba.core.cpu.CPUContext>"
	.size	".const.<numba.core.cpu.CPUContext>", 28

	.type	_ZN08NumbaEnv5numba2np8arrayobj18ol_compatible_view12_3clocals_3e4implB2v2B42c8tJTIeFIjxB2IKSgI4CrvQClcaMQ5hEEUSJJgA_3dE5ArrayIfLi2E1C8readonly7alignedE16class_28int32_29,@object
	.comm	_ZN08NumbaEnv5numba2np8arrayobj18ol_compatible_view12_3clocals_3e4implB2v2B42c8tJTIeFIjxB2IKSgI4CrvQClcaMQ5hEEUSJJgA_3dE5ArrayIfLi2E1C8readonly7alignedE16class_28int32_29,8,8
	.type	.const.pickledata.f9e61476d731dbc160bce9c6ae62b974aee28117,@object
	.p2align	4, 0x0
.const.pickledata.f9e61476d731dbc160bce9c6ae62b974aee28117:
	.ascii	"\200\004\225\272\000\000\000\000\000\000\000\214\bbuiltins\224\214\nValueError\224\223\224\214JTo change to a dtype of a different size, the last axis must be contiguous\224\205\224\214\004impl\224\214?/work/env/dev/lib/python3.11/site-packages/numba/np/arrayobj.py\224MC\f\207\224\207\224."
	.size	.const.pickledata.f9e61476d731dbc160bce9c6ae62b974aee28117, 197

	.type	.const.pickledata.f9e61476d731dbc160bce9c6ae62b974aee28117.sha1,@object
	.p2align	4, 0x0
.const.pickledata.f9e61476d731dbc160bce9c6ae62b974aee28117.sha1:
	.ascii	"\371\346\024v\3271\333\301`\274\351\306\256b\271t\256\342\201\027"
	.size	.const.pickledata.f9e61476d731dbc160bce9c6ae62b974aee28117.sha1, 20

	.type	.const.picklebuf.f9e61476d731dbc160bce9c6ae62b974aee28117,@object
	.p2align	4, 0x0
.const.picklebuf.f9e61476d731dbc160bce9c6ae62b974aee28117:
	.quad	.const.pickledata.f9e61476d731dbc160bce9c6ae62b974aee28117
	.long	197
	.zero	4
	.quad	.const.pickledata.f9e61476d731dbc160bce9c6ae62b974aee28117.sha1
	.quad	0
	.long	0
	.zero	4
	.size	.const.picklebuf.f9e61476d731dbc160bce9c6ae62b974aee28117, 40

	.type	.const.pickledata.cd031e359a7144cf236a491720e2f0343ca0da30,@object
	.p2align	4, 0x0
.const.pickledata.cd031e359a7144cf236a491720e2f0343ca0da30:
	.ascii	"\200\004\225\312\000\000\000\000\000\000\000\214\bbuiltins\224\214\nValueError\224\223\224\214ZWhen changing to a smaller dtype, its size must be a divisor of the size of original dtype\224\205\224\214\004impl\224\214?/work/env/dev/lib/python3.11/site-packages/numba/np/arrayobj.py\224MI\f\207\224\207\224."
	.size	.const.pickledata.cd031e359a7144cf236a491720e2f0343ca0da30, 213

	.type	.const.pickledata.cd031e359a7144cf236a491720e2f0343ca0da30.sha1,@object
	.p2align	4, 0x0
.const.pickledata.cd031e359a7144cf236a491720e2f0343ca0da30.sha1:
	.ascii	"\315\003\0365\232qD\317#jI\027 \342\3604<\240\3320"
	.size	.const.pickledata.cd031e359a7144cf236a491720e2f0343ca0da30.sha1, 20

	.type	.const.picklebuf.cd031e359a7144cf236a491720e2f0343ca0da30,@object
	.p2align	4, 0x0
.const.picklebuf.cd031e359a7144cf236a491720e2f0343ca0da30:
	.quad	.const.pickledata.cd031e359a7144cf236a491720e2f0343ca0da30
	.long	213
	.zero	4
	.quad	.const.pickledata.cd031e359a7144cf236a491720e2f0343ca0da30.sha1
	.quad	0
	.long	0
	.zero	4
	.size	.const.picklebuf.cd031e359a7144cf236a491720e2f0343ca0da30, 40

	.type	.const.pickledata.6df0aea899c9d6b21d65dec328965fa4891f4c5a,@object
	.p2align	4, 0x0
.const.pickledata.6df0aea899c9d6b21d65dec328965fa4891f4c5a:
	.ascii	"\200\004\225\345\000\000\000\000\000\000\000\214\bbuiltins\224\214\nValueError\224\223\224\214uWhen changing to a larger dtype, its size must be a divisor of the total size in bytes of the last axis of the array.\224\205\224\214\004impl\224\214?/work/env/dev/lib/python3.11/site-packages/numba/np/arrayobj.py\224MP\f\207\224\207\224."
	.size	.const.pickledata.6df0aea899c9d6b21d65dec328965fa4891f4c5a, 240

	.type	.const.pickledata.6df0aea899c9d6b21d65dec328965fa4891f4c5a.sha1,@object
	.p2align	4, 0x0
.const.pickledata.6df0aea899c9d6b21d65dec328965fa4891f4c5a.sha1:
	.ascii	"m\360\256\250\231\311\326\262\035e\336\303(\226_\244\211\037LZ"
	.size	.const.pickledata.6df0aea899c9d6b21d65dec328965fa4891f4c5a.sha1, 20

	.type	.const.picklebuf.6df0aea899c9d6b21d65dec328965fa4891f4c5a,@object
	.p2align	4, 0x0
.const.picklebuf.6df0aea899c9d6b21d65dec328965fa4891f4c5a:
	.quad	.const.pickledata.6df0aea899c9d6b21d65dec328965fa4891f4c5a
	.long	240
	.zero	4
	.quad	.const.pickledata.6df0aea899c9d6b21d65dec328965fa4891f4c5a.sha1
	.quad	0
	.long	0
	.zero	4
	.size	.const.picklebuf.6df0aea899c9d6b21d65dec328965fa4891f4c5a, 40

	.type	_ZN08NumbaEnv5numba2np8arrayobj13_change_dtype12_3clocals_3e3impB2v3B42c8tJTC_2fWQA93W1AaAIYBPIqRBFCjDSZRVAJmaQIAEx5ArrayIxLi1E1C7mutable7alignedE5ArrayIxLi1E1C7mutable7alignedExxa,@object
	.comm	_ZN08NumbaEnv5numba2np8arrayobj13_change_dtype12_3clocals_3e3impB2v3B42c8tJTC_2fWQA93W1AaAIYBPIqRBFCjDSZRVAJmaQIAEx5ArrayIxLi1E1C7mutable7alignedE5ArrayIxLi1E1C7mutable7alignedExxa,8,8
	.type	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy10_symmetricB2v2B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedExf,@object
	.comm	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy10_symmetricB2v2B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedExf,8,8
	.type	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy12_signed_peakB2v3B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedEx,@object
	.comm	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy12_signed_peakB2v3B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIiLi2E1C8readonly7alignedEx,8,8
	.type	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v4B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEi18class_28float32_29,@object
	.comm	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v4B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEi18class_28float32_29,8,8
	.type	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v5B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEj18class_28float32_29,@object
	.comm	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v5B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEj18class_28float32_29,8,8
	.type	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy8_inverseB2v6B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dEf,@object
	.comm	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy8_inverseB2v6B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dEf,8,8
	.type	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6fields7put_f16B3v13B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIhLi2E1C7mutable7alignedEx23Literal_5bint_5d_280_29f,@object
	.comm	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6fields7put_f16B3v13B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIhLi2E1C7mutable7alignedEx23Literal_5bint_5d_280_29f,8,8
	.type	_ZN08NumbaEnv4half15f32_to_f16_bitsB2v4B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dEf,@object
	.comm	_ZN08NumbaEnv4half15f32_to_f16_bitsB2v4B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dEf,8,8
	.type	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v5B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEf17class_28uint32_29,@object
	.comm	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v5B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEf17class_28uint32_29,8,8
	.type	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v6B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEj18class_28float32_29,@object
	.comm	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v6B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEj18class_28float32_29,8,8
	.type	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6fields7put_u16B3v14B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIhLi2E1C7mutable7alignedEx23Literal_5bint_5d_280_29t,@object
	.comm	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6fields7put_u16B3v14B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIhLi2E1C7mutable7alignedEx23Literal_5bint_5d_280_29t,8,8
	.type	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy8_nibblesB2v7B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedEx8UniTupleIfLi4EE5ArrayIhLi2E1A7mutable7alignedE,@object
	.comm	_ZN08NumbaEnv10zenconvert7formats4gguf6blocks6legacy8_nibblesB2v7B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AE5ArrayIfLi2E1C8readonly7alignedEx8UniTupleIfLi4EE5ArrayIhLi2E1A7mutable7alignedE,8,8
	.type	_ZN08NumbaEnv5numba7cpython8builtins6ol_min12_3clocals_3e4implB2v8B42c8tJTIeFIjxB2IKSgI4CrvQClcaMQ5hEEUSJJgA_3dE15StarArgUniTupleIfLi2EE,@object
	.comm	_ZN08NumbaEnv5numba7cpython8builtins6ol_min12_3clocals_3e4implB2v8B42c8tJTIeFIjxB2IKSgI4CrvQClcaMQ5hEEUSJJgA_3dE15StarArgUniTupleIfLi2EE,8,8
	.section	".note.GNU-stack","",@progbits
